"""`kbit fit` and `kbit plan` as a user gets them: what they answer, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from kbitlib.cli import main

KEYS = {
    "law", "n", "params", "se", "ci95", "objective", "gradient_norm", "converged", "identified", "warnings",
}  # fmt: skip


def kbit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Losses of a known law, E = 1.8, alpha = .35, beta = .37, under names of its own."""
    random = np.random.default_rng(0)
    N, D = np.exp(random.uniform(16, 22, 60)), np.exp(random.uniform(20, 25, 60))
    loss = (1.8 + 480 * N**-0.35 + 2100 * D**-0.37) * np.exp(0.002 * random.standard_normal(60))
    pd.DataFrame({"N": N, "D": D, "loss": loss, "C": 6 * N * D}).to_csv(path := tmp_path / "runs.csv", index=False)
    return path


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """Losses of sizes in two formats and in full precision; 3 bits count for half the parameters, 4 for .8."""
    rows = [
        {"model": f"m{size:g}", "params": size, "format": name, "k": k, "loss": 0.9 + 30 * (size * factor) ** -0.25}
        for size in np.geomspace(1e7, 3e9, 8)
        for name, k, factor in (("bf16", 16, 1.0), ("nf4-b64", 4, 0.8), ("int3-b64", 3, 0.5))
    ]
    noise = 1 + 0.001 * np.random.default_rng(0).standard_normal(len(rows))
    table = pd.DataFrame(rows).assign(loss=lambda frame: frame["loss"] * noise)
    table.to_parquet(path := tmp_path / "quantized.parquet")
    return path


def test_a_law_is_found_in_a_table_of_anyones(runs: Path) -> None:
    result = kbit("fit", runs, "--map", "params=N", "--map", "tokens=D", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert set(facts) >= KEYS
    assert facts["converged"]
    assert facts["n"] == 60
    assert all(facts["identified"].values())
    for name, true in {"E": 1.8, "alpha": 0.35, "beta": 0.37}.items():
        low, high = facts["ci95"][name]
        assert low < facts["params"][name] < high
        assert abs(facts["params"][name] - true) < 4 * facts["se"][name]
    shown = kbit("fit", runs, "--map", "params=N", "--map", "tokens=D", "--where", "loss < 4")
    assert shown.exit_code == 0
    assert "Converged:     True" in shown.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--law", "chinchila"], ["'chinchila'", "chinchilla"]),
        (["--map", "params=M"], ["'M'", "N, D, loss, C"]),
        (["--map", "params"], ["NAME=COLUMN", "'params'"]),
        (["--map", "params=N", "--map", "params=D"], ["'params' twice"]),
        ([], ["'params' is missing"]),
        (["--map", "params=N", "--map", "tokens=D", "--where", "loss > 100"], ["none of the 60 rows"]),
        (["--map", "params=N", "--map", "tokens=D", "--map", "flops=C", "--law", "tutorial"], ["not identified"]),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(runs: Path, options: list[str], words: list[str]) -> None:
    result = kbit("fit", runs, *options)
    assert result.exit_code == 2, result.output
    (sentence,) = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert all(word in sentence for word in words), sentence


def test_collinear_columns_are_refused_with_what_is_identified(runs: Path) -> None:
    result = kbit("fit", runs, "--map", "params=N", "--map", "tokens=D", "--map", "flops=C", "--law", "tutorial")
    assert "identified: log alpha" in result.output


@pytest.mark.parametrize(("value", "words"), [(-2.5, "-2.5"), (27.6, "perplexity")])
def test_a_loss_that_is_none_is_refused(runs: Path, value: float, words: str) -> None:
    table = pd.read_csv(runs)
    table.loc[3, "loss"] = value
    table.to_csv(runs, index=False)
    result = kbit("fit", runs, "--map", "params=N", "--map", "tokens=D")
    assert result.exit_code == 2
    assert "'loss'" in result.output
    assert words in result.output


def test_a_plan_from_a_fit_of_ones_own(quantized: Path, tmp_path: Path) -> None:
    fitted = kbit("fit", quantized, "--law", "effective-parameters", "--map", "k=format", "--json")
    assert fitted.exit_code == 0, fitted.output
    (tmp_path / "fit.json").write_text(fitted.stdout)
    found = kbit("plan", "--memory", "1GB", "--fit", tmp_path / "fit.json", "--json")
    assert found.exit_code == 0, found.output
    first, *rest = json.loads(found.stdout)["plan"]
    assert first["format"] == "nf4-b64"  # .8 of the parameters at 4.25 bits beat .5 at 3.25, and all at 16
    assert first["params"] == pytest.approx(8e9 / 4.25, rel=1e-3)
    assert first["low"] < first["loss"] < first["high"]
    assert [row["gap"] for row in rest] == sorted(row["gap"] for row in rest)
    assert not first["extrapolates"]
    further = kbit("plan", "--memory", "100GiB", "--fit", tmp_path / "fit.json")
    assert "extrapolates" in further.output


def test_a_plan_from_published_figures_within_a_speed(tmp_path: Path) -> None:
    free = json.loads(kbit("plan", "--memory", "24GiB", "--json").stdout)["plan"][0]
    table = pd.DataFrame({"bytes_held": [1e8, 1e9, 2e9, 4e9], "ms_per_token": [10.0, 60.0, 115.0, 225.0]})
    table.to_csv(path := tmp_path / "speed.csv", index=False)
    asked = kbit("plan", "--memory", "24GiB", "--tokens-per-second", 4, "--speed", path, "--json")
    limited = json.loads(asked.stdout)["plan"]
    assert all(row["tokens_per_second"] >= 4 for row in limited)
    assert limited[0]["bytes"] < free["bytes"]
    assert limited[0]["loss"] > free["loss"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "8 potatoes"], ["'8 potatoes'", "GiB"]),
        (["--memory", "-1GiB"], ["'-1GiB'"]),
        (["--memory", "1kB"], ["nothing fits in 1000 bytes", "LLaMA-1-7B"]),
        (["--memory", "8gb"], ["'8gb'", "case matters"]),
        (["--memory", "8GiB", "--family", "Llama-9"], ["'Llama-9'", "--family", "LLaMA-1"]),
        (["--memory", "8GiB", "--formats", "formats.csv"], ["--formats", "--fit"]),
        (["--memory", "8GiB", "--tokens-per-second", "nan"], ["tokens_per_second is nan"]),
        (["--memory", "8GiB", "--fit", "nowhere.json"], ["no file 'nowhere.json'"]),
        (["--memory", "8GiB", "--tokens-per-second", "0"], ["0"]),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(options: list[str], words: list[str]) -> None:
    result = kbit("plan", *options)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"law": "chinchilla"}', "[" * 200_000])
def test_a_fit_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "fit.json").write_text(text)
    result = kbit("plan", "--memory", "8GiB", "--fit", tmp_path / "fit.json")
    assert result.exit_code == 2, result.output
    assert "fit" in result.output


def test_a_fit_that_did_not_converge_is_planned_with_without_an_interval(quantized: Path, tmp_path: Path) -> None:
    facts = json.loads(kbit("fit", quantized, "--law", "effective-parameters", "--map", "k=format", "--json").stdout)
    halted = {**facts, "converged": False, "warnings": ["no minimum was reached"]}
    (tmp_path / "fit.json").write_text(json.dumps(halted))
    said = kbit("plan", "--memory", "1GB", "--fit", tmp_path / "fit.json").output
    assert said.startswith("The fit did not converge")
    assert "no minimum was reached." in said
    assert "(90%)" not in said


def test_formats_that_only_their_maker_knows_are_said_in_a_table(quantized: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(quantized).replace({"format": {"nf4-b64": "q4", "int3-b64": "q3"}})
    rows.to_parquet(quantized)
    fitted = kbit("fit", quantized, "--law", "effective-parameters", "--map", "k=format", "--json")
    (fit_json := tmp_path / "fit.json").write_text(fitted.stdout)
    unknown = kbit("plan", "--memory", "1GB", "--fit", fit_json)
    assert unknown.exit_code == 2
    assert "the fit's level 'q3'" in unknown.output
    assert "--formats" in unknown.output
    costs = pd.DataFrame({"format": ["q3", "q4", "bf16"], "bits_per_weight": [3.5, 4.5, 16.0]})
    costs.to_csv(table := tmp_path / "costs.csv", index=False)
    found = kbit("plan", "--memory", "1GB", "--fit", fit_json, "--formats", table, "--json")
    assert found.exit_code == 0, found.output
    first = json.loads(found.stdout)["plan"][0]
    assert (first["format"], first["bits_per_weight"], first["k"]) == ("q4", 4.5, None)
    table.write_text("format\nq3\n")
    assert (
        "'bits_per_weight' is missing" in kbit("plan", "--memory", "1GB", "--fit", fit_json, "--formats", table).output
    )


def test_it_says_by_which_records_it_knows_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = pd.DataFrame({"bytes_held": [1e8, 1e9, 2e9, 4e9], "ms_per_token": [10.0, 60.0, 115.0, 225.0]})
    published, own = (tmp_path / "reports" / folder for folder in ("published/laptop", "laptop/records"))
    published.mkdir(parents=True)
    records.to_csv(published / "generation.csv", index=False)
    monkeypatch.setattr("kbitlib.experiments.settings.ROOT", tmp_path)
    asked = ["plan", "--memory", "24GiB", "--tokens-per-second", 4, "--json"]
    said = json.loads(kbit(*asked).stdout)["sentences"]
    assert str(published / "generation.csv") in said[-1]
    assert "this machine may be faster or slower" in said[-1]
    own.mkdir(parents=True)
    records.to_csv(own / "generation.csv", index=False)
    assert json.loads(kbit(*asked).stdout)["sentences"][-1] == f"Speed is by the records in {own / 'generation.csv'}."


def test_records_in_which_more_bytes_take_less_time_say_nothing_of_speed(tmp_path: Path) -> None:
    records = pd.DataFrame({"bytes_held": [1e8, 1e9, 2e9, 4e9], "ms_per_token": [225.0, 115.0, 60.0, 10.0]})
    records.to_csv(path := tmp_path / "speed.csv", index=False)
    result = kbit("plan", "--memory", "24GiB", "--tokens-per-second", 4, "--speed", path)
    assert result.exit_code == 2
    assert "law of time did not converge" in result.output

"""Every law: recovered from exact rows of its formula written once more, and refused by name for a bad column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import fit
from kbitlib.laws.forms import FORMS

QUEST_CSV = Path(__file__).parents[3] / "shared" / "data" / "quest_runs.csv"
Values = dict[str, float]


class Example(NamedTuple):
    """Parameters of a law, those published where there are any, and its formula in plain numpy."""

    truth: Values
    formula: Callable[[pd.DataFrame, Values], pd.Series]


def effective(t: pd.DataFrame, p: Values) -> pd.Series:
    return t["params"] * t["k"].map({2: p["f[2]"], 4: p["f[4]"], 16: 1.0})


EXAMPLES = {
    "power": Example({"A": 20.0, "alpha": 0.1}, lambda t, p: p["A"] * t["params"] ** -p["alpha"]),
    "tutorial": Example(
        {"alpha": 3.0, "beta": -0.05, "gamma": -0.08, "delta": 0.03},
        lambda t, p: p["alpha"] * t["params"] ** p["beta"] * t["tokens"] ** p["gamma"] * t["flops"] ** p["delta"],
    ),
    "kaplan": Example(
        {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
        lambda t, p: (
            ((p["N_c"] / t["params"]) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / t["tokens"]) ** p["alpha_D"]
        ),
    ),
    "chinchilla": Example(
        {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        lambda t, p: p["E"] + p["A"] * t["params"] ** -p["alpha"] + p["B"] * t["tokens"] ** -p["beta"],
    ),
    "total-bits": Example(
        {"A[2]": 60.0, "A[4]": 30.0, "A[16]": 35.0, "alpha[2]": 0.15, "alpha[4]": 0.13, "alpha[16]": 0.12},
        lambda t, p: (
            t["k"].map({k: p[f"A[{k}]"] for k in (2, 4, 16)})
            * t["total_bits"] ** -t["k"].map({k: p[f"alpha[{k}]"] for k in (2, 4, 16)})
        ),
    ),
    "effective-parameters": Example(
        {"E": 0.6, "A": 30.0, "alpha": 0.3, "f[2]": 0.3, "f[4]": 0.92},
        lambda t, p: p["E"] + p["A"] * effective(t, p) ** -p["alpha"],
    ),
    "frantar": Example(
        {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37, "f[2]": 0.41, "f[4]": 0.923},
        lambda t, p: p["E"] + p["A"] * effective(t, p) ** -p["alpha"] + p["B"] * t["tokens"] ** -p["beta"],
    ),
    "panferov": Example(
        {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37, "F": 0.45, "C": 1.4},
        lambda t, p: (
            p["E"]
            + p["A"]
            * (t["params"] * np.tanh(p["F"] * np.log(t["gaussian_mse"]) / np.log(0.25)) ** p["C"]) ** -p["alpha"]
            + p["B"] * t["tokens"] ** -p["beta"]
        ),
    ),
    "kumar": Example(
        {"E": 2.7648, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.5890}
        | {"gamma_w": 2.6745, "gamma_a": 2.2102, "gamma_kv": 0.9578}
        | {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
        lambda t, p: (
            p["E"]
            + p["A"]
            * (
                t["params"]
                * (1 - np.exp(-t["k"] / p["gamma_w"]))
                * (1 - np.exp(-t["activation_bits"] / p["gamma_a"]))
                * (1 - np.exp(-t["kv_bits"] / p["gamma_kv"]))
            )
            ** -p["alpha"]
            + p["B"] * t["tokens"] ** -p["beta"]
            + p["C_T"]
            * t["tokens"] ** p["gamma_D"]
            / t["params"] ** p["gamma_N"]
            * np.exp(-t["k_post"] / p["gamma_post"])
        ),
    ),
    "ouyang": Example(
        {"C": 0.017, "alpha": 0.2261, "beta": 0.5251, "gamma": 5.4967},
        lambda t, p: (
            p["C"] * t["tokens"] ** p["beta"] / (t["params"] ** p["alpha"] * t["k"].astype(float) ** p["gamma"])
        ),
    ),
    "qat": Example(
        {"C": 0.1582, "gamma_D": 0.0745, "gamma_G": 0.7779, "gamma_N": 0.2186},
        lambda t, p: (
            p["C"] * t["tokens"] ** p["gamma_D"] * np.log2(t["block"]) ** p["gamma_G"] / t["params"] ** p["gamma_N"]
        ),
    ),
    "degradation": Example(
        {"C": 4.0, "c": -0.05, "d": 0.1, "g": 0.5, "h": 0.05},
        lambda t, p: (
            p["C"] * t["params"] ** p["c"] * t["tokens"] ** p["d"] * np.exp(-p["g"] * t["k"] * t["params"] ** p["h"])
        ),
    ),
    "time": Example({"T": 1.5, "c": 4e-8}, lambda t, p: p["T"] + p["c"] * t["bytes"]),
    "memory": Example({"M": 3e6, "m": 0.125}, lambda t, p: p["M"] + p["m"] * t["total_bits"]),
}


def rows(law: str, count: int = 120) -> pd.DataFrame:
    """Exact rows of a law over columns that have nothing to do with each other."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "params": np.exp(random.uniform(17, 22, count)),
            "tokens": np.exp(random.uniform(20, 25, count)),
            "flops": np.exp(random.uniform(40, 48, count)),
            "total_bits": np.exp(random.uniform(15, 23, count)),
            "k": random.choice([2, 4, 16], count),
            "activation_bits": random.integers(2, 9, count),
            "kv_bits": random.integers(2, 9, count),
            "k_post": random.choice([3, 4, 5, 6, 16], count),
            "gaussian_mse": np.exp(random.uniform(-6, -1, count)),
            "block": random.choice([32, 64, 128, 256], count),
            "bytes": np.exp(random.uniform(15, 22, count)),
        }
    )
    form, example = FORMS[law], EXAMPLES[law]
    response = example.formula(table, example.truth)
    return table[list(form.columns)].assign(**{form.response: response})


@pytest.mark.parametrize("law", FORMS)
def test_a_law_is_recovered_from_exact_rows(law: str) -> None:
    results = fit(rows(law), law)
    assert results.converged
    assert results.params.to_dict() == pytest.approx(EXAMPLES[law].truth, rel=1e-6)


@pytest.mark.parametrize("law", FORMS)
def test_with_noise_no_law_stops_above_the_truth(law: str) -> None:
    table = rows(law)
    for state in range(4):
        noise = 0.01 * np.random.default_rng(state).standard_normal(len(table))
        results = fit(table.assign(**{FORMS[law].response: table[FORMS[law].response] * np.exp(noise)}), law)
        assert results.converged
        assert results.objective < (noise**2).sum()


@pytest.mark.parametrize("law", FORMS)
def test_a_column_that_a_law_needs_is_asked_for_by_name(law: str) -> None:
    table = rows(law)
    for name in set(FORMS[law].columns) - set(FORMS[law].optional) | {FORMS[law].response}:
        with pytest.raises(ValueError, match=f"column '{name}' is missing; the table has"):
            fit(table.drop(columns=name), law)


@pytest.mark.parametrize("law", FORMS)
def test_a_value_that_is_not_positive_is_named(law: str) -> None:
    table = rows(law).astype(float)
    for name in (*FORMS[law].columns, FORMS[law].response):
        with pytest.raises(ValueError, match=f"column '{name}' holds -2.0 in row 3; only"):
            fit(table.assign(**{name: table[name].where(table.index != 3, -2.0)}), law)


# --- optional columns ---


def test_bits_that_a_table_lacks_are_infinite_for_kumar() -> None:
    truth = EXAMPLES["kumar"].truth
    whole = rows("kumar").drop(columns="loss")
    full = EXAMPLES["kumar"].formula(whole.assign(k=1e3, activation_bits=1e3, k_post=1e6), truth)
    results = fit(whole[["params", "tokens", "kv_bits"]].assign(loss=full), "kumar")
    names = ("E", "A", "B", "alpha", "beta", "gamma_kv")
    assert results.params.to_dict() == pytest.approx({name: truth[name] for name in names}, rel=1e-5)
    assert results.formula == "loss = E + A (params (1 - e^(-kv_bits/gamma_kv)))^-alpha + B tokens^-beta"


def test_kumar_after_training_takes_k_once() -> None:
    truth = EXAMPLES["kumar"].truth
    table = rows("kumar").assign(activation_bits=1e3, kv_bits=1e3)
    loss = EXAMPLES["kumar"].formula(table.assign(k=1e3), truth)
    after = table[["params", "tokens"]].assign(k=table["k_post"], loss=loss)
    results = fit(after, "kumar", columns={"k_post": "k"})
    names = ("E", "A", "B", "alpha", "beta", "C_T", "gamma_D", "gamma_N", "gamma_post")
    assert results.params.to_dict() == pytest.approx({name: truth[name] for name in names}, rel=1e-5)
    assert results.predict(after).to_numpy() == pytest.approx(loss.to_numpy())


def test_an_optional_column_that_is_mapped_must_be_there() -> None:
    with pytest.raises(ValueError, match="column 'W' is missing"):
        fit(rows("kumar"), "kumar", columns={"k": "W"})


def test_a_law_of_bits_needs_some() -> None:
    with pytest.raises(ValueError, match="law kumar needs one of the columns k, activation_bits, kv_bits, k_post"):
        fit(rows("chinchilla"), "kumar")


def test_degradation_takes_no_power_of_tokens_that_do_not_vary() -> None:
    truth = {"C": 4.0, "c": -0.05, "g": 0.5, "h": 0.05}
    table = rows("degradation").assign(tokens=1.0)
    delta = EXAMPLES["degradation"].formula(table, truth | {"d": 0.1})
    for same in (table.assign(delta=delta), table.assign(delta=delta).drop(columns="tokens")):
        assert fit(same, "degradation").params.to_dict() == pytest.approx(truth, rel=1e-6)


# --- labels for k ---


@pytest.mark.parametrize("law", [name for name, form in FORMS.items() if form.names_levels])
@pytest.mark.parametrize("full", ["fp32", "bf16", "full"])
def test_formats_may_stand_for_k_where_k_only_names_levels(law: str, full: str) -> None:
    table = rows(law)
    labels = table["k"].map({2: "nf2-b64", 4: "int4-b128-zp", 16: full})
    named = fit(table.assign(format=labels).drop(columns="k"), law, columns={"k": "format"})
    written = {"[2]": "[nf2-b64]", "[4]": "[int4-b128-zp]", "[16]": f"[{full}]"}
    for name, value in EXAMPLES[law].truth.items():
        for number, text in written.items():
            name = name.replace(number, text)
        assert named.params[name] == pytest.approx(value, rel=1e-6)
    some = table.assign(format=labels)[:5]
    assert named.predict(some).to_numpy() == pytest.approx(table["loss"][:5].to_numpy())
    with pytest.raises(ValueError, match=r"k = nf4-b64 was not among the rows fitted; .*int4-b128-zp, "):
        named.predict(some.assign(format="nf4-b64"))


def test_bits_of_full_precision_may_stand_beside_labels() -> None:
    table = rows("effective-parameters")
    mixed = table["k"].map({2: "nf2", 4: "nf4", 16: 32})
    found = fit(table.assign(format=mixed), "effective-parameters", columns={"k": "format"}).params
    assert list(found.index) == ["E", "A", "alpha", "f[nf2]", "f[nf4]"]
    with pytest.raises(ValueError, match="column 'format' holds 3 in row 5 beside labels; only labels and 16 bits"):
        fit(table.assign(format=mixed.where(table.index != 5, 3)), "effective-parameters", columns={"k": "format"})
    with pytest.raises(ValueError, match="column 'format' holds nan in row 5"):
        fit(table.assign(format=mixed.where(table.index != 5)), "effective-parameters", columns={"k": "format"})


def test_labels_are_refused_where_k_is_a_number() -> None:
    with pytest.raises(ValueError, match="law degradation computes with k, which holds labels, as 'nf4'"):
        fit(rows("degradation").assign(format="nf4"), "degradation", columns={"k": "format"})
    with pytest.raises(ValueError, match="column 'k' holds nf4 in row 0; only positive finite numbers are allowed"):
        fit(rows("total-bits").assign(k="nf4"), "total-bits")


def test_models_of_full_precision_alone_have_no_factor() -> None:
    table = rows("effective-parameters")
    found = fit(table[table["k"] == 16], "effective-parameters").params
    assert found.to_dict() == pytest.approx({"E": 0.6, "A": 30.0, "alpha": 0.3}, rel=1e-6)


def test_values_that_a_law_takes_two_logarithms_of() -> None:
    with pytest.raises(ValueError, match=r"column 'gaussian_mse' holds 1.2 in row 0; only numbers between 0 and 1"):
        fit(rows("panferov").assign(gaussian_mse=1.2), "panferov")
    with pytest.raises(ValueError, match="column 'block' holds 1 in row 0; only finite numbers above 1"):
        fit(rows("qat").assign(block=1), "qat")


def test_quest_has_free_factors_no_floor_and_no_exponential() -> None:
    """QuEST, 2025, weights and activations of k bits: 1 - e^(-k/gamma) falls too slowly between 4 bits and 1."""
    if not QUEST_CSV.exists():
        pytest.skip(f"the runs of QuEST, 2025, are not there: {QUEST_CSV}")
    runs = pd.read_csv(QUEST_CSV)
    runs = runs[runs["scheme"].isin(["quest", "bf16"]) & (runs["w_bits"] == runs["a_bits"])]
    names = {"params": "params_nonemb", "k": "w_bits"}
    free, exponential = (fit(runs, law, columns=names) for law in ("frantar", "kumar"))
    assert free.boundary == ["E"]
    assert free.params.filter(like="f[").is_monotonic_increasing
    assert exponential.converged
    assert exponential.objective > 4 * free.objective


def test_every_law_names_its_source() -> None:
    assert list(EXAMPLES) == list(FORMS)
    for name, form in FORMS.items():
        assert form.name == name
        assert form.source
        assert form.formula.startswith(f"{form.response} = ")

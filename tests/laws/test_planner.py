"""The planner: what it takes is what the law says, and it says how sure, how dear and how far outside the rows."""

import json

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import fit
from kbitlib.laws.planner import parse_bytes, plan, published_fit

FACTORS = {2: 0.05, 3: 0.35, 4: 0.75, 8: 0.99, 16: 1.0}
SIZES = np.geomspace(1e7, 1e10, 8)


def loss_of(params: float, k: float) -> float:
    return 1.6 + 30 * (params * FACTORS[int(k)]) ** -0.18


def family(noise: float = 0.001) -> pd.DataFrame:
    """Eight models at five widths, as two data types of which `nf` is worth a tenth more parameters."""
    random = np.random.default_rng(0)
    rows = []
    for size in SIZES:
        for k in FACTORS:
            for element, worth in (("int", 1.0), ("nf", 1.1)) if k < 16 else (("bf", 1.0),):
                name = "bf16" if k == 16 else f"{element}{k}-b64"
                loss = loss_of(size * worth, k) * np.exp(noise * random.standard_normal())
                rows.append((f"m{size:.0e}", size, k, element, name, loss))
    return pd.DataFrame(rows, columns=["model", "params", "k", "element", "format", "loss"])


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    rows = family()
    return fit(rows[rows.element != "nf"], "effective-parameters").facts()


@pytest.fixture(scope="module")
def speed() -> dict[str, object]:
    random = np.random.default_rng(0)
    size = np.geomspace(1e7, 1e10, 20)
    milliseconds = (0.5 + 2e-8 * size) * np.exp(0.02 * random.standard_normal(20))
    return fit(pd.DataFrame({"bytes": size, "ms": milliseconds}), "time").facts()


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("500 MB", 5e8), ("2e9", 2e9), ("1.5kB", 1500), ("64 KiB", 65536), ("1 TB", 1e12)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8 gigs", "-1GB", "0", "GiB", "1.2.3MB", "nan", "", "8gb"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"GiB.*case matters, is allowed"):
        parse_bytes(text)


@pytest.mark.parametrize("memory", [3e7, 3e8, 3e9])
def test_the_format_taken_is_the_one_of_least_true_loss(facts: dict[str, object], memory: float) -> None:
    found = plan(memory, facts)
    best = min(FACTORS, key=lambda k: loss_of(8 * memory / (k + 0.25 * (k < 16)), k))
    first = found.table.iloc[0]
    assert first.k == best == 4
    assert first.format == "int4-b64"
    assert first.bytes == pytest.approx(memory)
    assert first.loss == pytest.approx(loss_of(first.params, best), rel=2e-3)
    assert first.low < loss_of(first.params, best) < first.high
    assert found.table.loss.is_monotonic_increasing
    assert set(found.table.k) == set(FACTORS)


def test_models_that_exist_are_taken_where_they_fit(facts: dict[str, object]) -> None:
    models = pd.DataFrame(
        {"model": ["small", "large"], "params": [1e8, 4e8], "quantized": [1e8, 4e8], "kept": [1e7, 2e7]}
    )
    found = plan(2.6e8, facts, models=models)
    first = found.table.iloc[0]
    assert (first.model, first.k) == ("large", 4)
    assert first.bytes == (4e8 * 4.25 + 2e7 * 16) / 8
    assert (found.table.bytes <= 2.6e8).all()
    assert not ((found.table.model == "large") & (found.table.k > 4)).any()
    assert found.sentences[0].startswith("Take large in int4-b64: ")
    with pytest.raises(ValueError, match=r"nothing fits in 9.54 MiB: the smallest, small in int2-b64, takes 45.9 MiB"):
        plan(1e7, facts, models=models)


def test_data_types_are_compared_where_the_law_knows_them_by_name() -> None:
    rows = family()
    facts = fit(rows, "effective-parameters", columns={"k": "format"}).facts()
    formats = rows.drop_duplicates("format").rename(columns={"element": "data_type"})[["format", "k", "data_type"]]
    formats = formats.assign(block=64, bits_per_weight=formats.k + 0.25 * (formats.k < 16))
    first = plan(3e8, facts, formats=formats).table.iloc[0]
    assert (first.format, first.data_type, first.block) == ("nf4-b64", "nf", 64)
    with pytest.raises(ValueError, match="by name"):
        plan(3e8, facts)
    with pytest.raises(ValueError, match="int5-b64 was not among"):
        plan(3e8, facts, formats=formats.replace({"format": {"int4-b64": "int5-b64"}}))


def test_it_says_when_it_extrapolates_and_how_far(facts: dict[str, object]) -> None:
    within, outside = plan(3e8, facts), plan(4.25e10 / 8 * 10, facts)
    assert not within.table.extrapolates[0]
    first = outside.table.iloc[0]
    assert first.extrapolates
    assert first.beyond == pytest.approx(10)
    assert any("10 times outside the rows fitted (params from 1e+07 to 1e+10)" in said for said in outside.sentences)
    assert (first.high - first.low) / first.loss > (within.table.high[0] - within.table.low[0]) / within.table.loss[0]


def test_the_price_of_the_next_best_and_when_it_is_none(facts: dict[str, object]) -> None:
    found = plan(3e8, facts)
    second = found.table.iloc[1]
    assert second.gap == pytest.approx(found.table.loss[1] - found.table.loss[0])
    assert second.gap_low < second.gap < second.gap_high
    assert f"costs {second.gap:.4f} nats a token more" in found.sentences[2]
    rows = family(noise=0.1)
    noisy = plan(3e8, fit(rows[rows.element != "nf"], "effective-parameters").facts())
    assert noisy.table.gap_low[1] < 0
    assert "cannot be told apart" in noisy.sentences[2]


def test_speed_limits_the_size_as_memory_does(facts: dict[str, object], speed: dict[str, object]) -> None:
    free = plan(3e9, facts, speed=speed)
    assert free.table.tokens_per_second[0] == pytest.approx(1e3 / (0.5 + 2e-8 * 3e9), rel=0.03)
    fast = plan(3e9, facts, speed=speed, tokens_per_second=100)
    assert fast.table.tokens_per_second.to_numpy() == pytest.approx(100)
    assert fast.table.bytes[0] == pytest.approx(9.5 / 2e-8, rel=0.05)
    assert any("100 tokens a second" in said for said in fast.sentences)
    assert not any("in bytes" in said for said in fast.sentences)
    assert any("by 3 times in bytes" in said for said in plan(3e10, facts, speed=speed).sentences)
    slow = plan(3e9, facts, speed=speed, tokens_per_second=1)
    assert slow.table.bytes[0] == pytest.approx(3e9)
    with pytest.raises(ValueError, match="of no size write more than"):
        plan(3e9, facts, speed=speed, tokens_per_second=1e5)
    with pytest.raises(ValueError, match="no law of time is given"):
        plan(3e9, facts, tokens_per_second=10)


def test_a_law_of_the_data_takes_the_longest_run_unless_told() -> None:
    grid = [(n, d, k) for n in SIZES for d in (1e9, 1e10, 1e11) for k in (2.0, 3.0, 4.0, 8.0)]
    rows = pd.DataFrame(grid, columns=["params", "tokens", "k"])
    after = 1e-3 * rows.tokens**0.4 * rows.params**-0.2 * np.exp(-rows.k / 0.6)
    random = np.random.default_rng(0)
    loss = 1.8 + 400 * rows.params**-0.35 + 2000 * rows.tokens**-0.37 + after
    rows["loss"] = loss * np.exp(1e-3 * random.standard_normal(len(rows)))
    facts = fit(rows, "kumar", columns={"k_post": "k"}).facts()
    usual, told, short = plan(1e9, facts), plan(1e9, facts, tokens=1e11), plan(1e9, facts, tokens=1e10)
    pd.testing.assert_frame_equal(usual.table, told.table)
    assert short.table.loss[0] > usual.table.loss[0]
    assert set(usual.table.k) == {2, 3, 4, 5, 6, 7, 8}
    assert plan(1e9, facts, tokens=1e12).table.beyond[0] >= 10


def test_laws_that_cannot_choose_are_refused(speed: dict[str, object], facts: dict[str, object]) -> None:
    rows = family()
    ends, nothing = {key: [1, 16] for key in ("params", "tokens", "k", "k_post")}, np.zeros((10, 10)).tolist()
    kumar = {**facts, "law": "kumar", "levels": [], "range": ends, "theta": [0.0] * 10}
    kumar |= {"covariance": nothing, "covariance_obs": nothing}
    short = {"theta": [0.0] * 5} | {key: np.zeros((5, 5)).tolist() for key in ("covariance", "covariance_obs")}
    chinchilla = {**kumar, "law": "chinchilla", **short}
    with pytest.raises(ValueError, match="knows no k"):
        plan(1e9, chinchilla)
    with pytest.raises(ValueError, match="bits in training and others after it"):
        plan(1e9, kumar)
    with pytest.raises(ValueError, match="predicts ms"):
        plan(1e9, speed)
    with pytest.raises(ValueError, match="the law `time`"):
        plan(1e9, facts, speed=facts)
    with pytest.raises(ValueError, match="'bits_per_weight' is missing"):
        plan(1e9, facts, formats=rows[["format", "k"]].drop_duplicates())


def test_a_plan_is_written_as_json(facts: dict[str, object]) -> None:
    found = plan(3e8, facts)
    again = json.loads(json.dumps(found.facts(), allow_nan=False))
    assert again["memory"] == 3e8
    assert again["sentences"] == found.sentences
    assert again["plan"][0]["format"] == "int4-b64"
    assert again["plan"][0]["tokens_per_second"] is None


def test_a_fit_that_gives_no_interval_gives_none_here(facts: dict[str, object]) -> None:
    empty = np.full((len(facts["theta"]),) * 2, None).tolist()
    found = plan(3e8, {**facts, "covariance": empty, "covariance_obs": empty, "obs_sd": None})
    assert found.table[["low", "high", "gap_low"]].isna().all().all()
    assert "the fit does not say" in found.sentences[1]


@pytest.mark.parametrize(("family_name", "memory", "size"), [("LLaMA-1", "8GiB", "13B"), ("BLOOM", "5GiB", "7.1B")])
def test_published_families_at_four_bits(family_name: str, memory: str, size: str) -> None:
    facts, formats, models = published_fit(family_name)
    found = plan(parse_bytes(memory), facts, formats=formats, models=models)
    first = found.table.iloc[0]
    assert first.k == 4
    assert first.model.endswith(size)
    assert not first.extrapolates
    with pytest.raises(ValueError, match="GPT-5"):
        published_fit("GPT-5")


def test_what_a_fit_warns_of_is_said_and_first_where_it_did_not_converge(
    facts: dict[str, object], speed: dict[str, object]
) -> None:
    warned = plan(3e8, {**facts, "warnings": ["the sky falls"]}, speed={**speed, "warnings": ["clocks stop"]})
    assert warned.sentences[0].startswith("Take ")
    assert warned.sentences[-2:] == ["The fit warns: the sky falls.", "The law of time warns: clocks stop."]
    assert warned.table["low"].notna().all()
    halted = plan(3e8, {**facts, "converged": False, "warnings": ["no minimum was reached"]})
    assert "did not converge" in halted.sentences[0]
    assert halted.sentences[1] == "The fit warns: no minimum was reached."
    assert halted.table[["low", "high", "gap_low", "gap_high", "probability"]].isna().all().all()
    slow = {**speed, "converged": False}
    timeless = plan(3e8, facts, speed=slow)
    assert timeless.table["tokens_per_second"].isna().all()
    assert timeless.sentences[2] == "How fast it writes is not known: the law of time did not converge."
    with pytest.raises(ValueError, match="law of time did not converge"):
        plan(3e8, facts, speed=slow, tokens_per_second=1)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"memory": value} for value in (-1, 0, np.nan, np.inf, "8GiB", None, True)),
        *({"tokens": value} for value in (-1, 0, np.nan, "many")),
        *({"tokens_per_second": value} for value in (-1, 0, np.nan, np.inf, "fast")),
        *({"level": value} for value in (0, 1, 2, np.nan, "sure", None)),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(
    facts: dict[str, object], speed: dict[str, object], wrong: dict[str, object]
) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name} is .* is allowed$"):
        plan(**{"memory": 3e8, "facts": facts, "speed": speed, **wrong})


def test_a_result_in_place_of_its_facts_is_refused() -> None:
    rows = family()
    with pytest.raises(ValueError, match="LawResults is no fit"):
        plan(3e8, fit(rows[rows.element != "nf"], "effective-parameters"))


@pytest.mark.filterwarnings("error")
def test_a_speed_that_limits_nothing_is_no_limit(facts: dict[str, object], speed: dict[str, object]) -> None:
    assert plan(3e8, facts, speed=speed, tokens_per_second=1e-305).sentences == plan(3e8, facts, speed=speed).sentences


def test_what_decided_is_said_memory_or_speed(facts: dict[str, object], speed: dict[str, object]) -> None:
    models = pd.DataFrame({"model": ["one"], "params": [4e9], "quantized": [4e9], "kept": [0.0]})
    with pytest.raises(ValueError, match=r"nothing fits in .* \(the most that 100 tokens a second leave of 2.79 GiB\)"):
        plan(3e9, facts, models=models, speed=speed, tokens_per_second=100)
    fast = plan(3e9, facts, speed=speed, tokens_per_second=100)
    assert "(the most that 100 tokens a second leave of 2.79 GiB)" in fast.sentences[0]
    assert "leave of" not in " ".join(plan(3e9, facts, speed=speed, tokens_per_second=1).sentences)


@pytest.mark.parametrize("bits", [2.25, 1.0])
def test_widths_that_no_integer_has_need_formats(facts: dict[str, object], bits: float) -> None:
    widths = [bits, *facts["levels"][1:]]
    effective = {**facts, "levels": widths}
    with pytest.raises(ValueError, match=f"at k = {bits:g}, .*--map k=format"):
        plan(3e8, effective)
    formats = pd.DataFrame({"format": ["a", "b"], "k": [bits, 4.0], "bits_per_weight": [2.25, 4.25]})
    assert set(plan(3e8, effective, formats=formats).table.format) == {"a", "b"}


def test_a_format_by_name_needs_its_bits_a_weight_alone() -> None:
    facts = fit(family(), "effective-parameters", columns={"k": "format"}).facts()
    found = plan(3e8, facts, formats=pd.DataFrame({"format": ["int4-b64", "bf16"], "bits_per_weight": [4.25, 16]}))
    assert json.loads(json.dumps(found.facts(), allow_nan=False))["plan"][0]["k"] is None


def test_an_interval_without_end_is_null_in_json(facts: dict[str, object]) -> None:
    found = plan(3e8, {**facts, "obs_sd": 1e300})
    assert np.isinf(found.table.high[0])
    assert json.loads(json.dumps(found.facts(), allow_nan=False))["plan"][0]["high"] is None


def test_the_name_of_a_family_is_read_in_any_case() -> None:
    assert published_fit("llama-1")[0] == published_fit("LLaMA-1")[0]
    with pytest.raises(ValueError, match=r"'GPT-5' \(--family\).*LLaMA-1"):
        published_fit("GPT-5")

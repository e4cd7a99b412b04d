"""A fit written as JSON predicts what the fit itself did."""

import json

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import fit
from kbitlib.laws.facts import FittedLaw


def runs(levels: tuple[float | str, ...] = (3, 4, 16)) -> pd.DataFrame:
    random = np.random.default_rng(1)
    factors = dict(zip(levels, (0.3, 0.7, 1.0), strict=True))
    rows = [
        (f"m{n:.0e}", n, k, 1.5 + 30 * (n * factors[k]) ** -0.2) for n in np.geomspace(1e7, 1e10, 8) for k in levels
    ]
    table = pd.DataFrame(rows, columns=["model", "params", "k", "loss"])
    shift = dict(zip(table.model.unique(), 0.004 * random.standard_normal(8), strict=True))
    own = 0.002 * random.standard_normal(len(table))
    return table.assign(loss=table.loss * np.exp(table.model.map(shift) + own))


@pytest.mark.parametrize("levels", [(3, 4, 16), ("nf3-b64", "nf4-b64", "bf16")])
@pytest.mark.parametrize("groups", ["model", None])
def test_predictions_and_intervals_are_those_of_the_results(
    levels: tuple[float | str, ...], groups: str | None
) -> None:
    rows = runs(levels).rename(columns={"k": "what"})
    results = fit(rows, "effective-parameters", columns={"k": "what"}, groups=groups)
    law = FittedLaw.from_facts(json.loads(json.dumps(results.facts(), allow_nan=False)))
    new = pd.DataFrame({"params": [5e8, 3e10, 2e7], "what": list(levels)})
    asked = new.rename(columns={"what": "k"})
    pd.testing.assert_frame_equal(
        law.get_prediction(asked).summary_frame(0.1), results.get_prediction(new).summary_frame(0.1), rtol=1e-9
    )
    np.testing.assert_allclose(law.mean(asked), results.predict(new))


@pytest.mark.parametrize(
    ("law", "columns"), [("kumar", {"k_post": "k"}), ("degradation", {}), ("total-bits", {}), ("kumar", {"k": "k"})]
)
def test_laws_with_other_columns_come_back_too(law: str, columns: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    grid = [(n, d, k) for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11) for k in (2.0, 3.0, 4.0, 8.0)]
    rows = pd.DataFrame(grid, columns=["params", "tokens", "k"])
    delta = 2e-2 * rows.tokens**0.2 * rows.params**-0.1 * np.exp(-rows.k)
    rows["delta"] = delta * np.exp(0.01 * rng.standard_normal(len(rows)))
    rows["loss"] = 1.8 + 400 * rows.params**-0.35 + 2000 * rows.tokens**-0.37 + rows.delta
    rows["total_bits"] = rows.params * rows.k
    results = fit(rows, law, columns=columns, groups=None)
    again = FittedLaw.from_facts(json.loads(json.dumps(results.facts())))
    np.testing.assert_allclose(again.mean(rows.assign(k_post=rows.k)), results.predict(rows))


def test_a_gap_is_surer_than_the_two_ends_apart() -> None:
    law = FittedLaw.from_facts(fit(runs(), "effective-parameters").facts())
    pair = pd.DataFrame({"params": [1e9, 1e9], "k": [4.0, 3.0]})
    gap = law.above_first(pair, 0.9)
    ends = law.get_prediction(pair).conf_int(0.1, obs=True)
    assert gap.gap[0] == 0
    assert gap.gap[1] == pytest.approx(np.diff(law.mean(pair))[0])
    assert gap.gap_high[1] - gap.gap_low[1] < (ends[1] - ends[0]).sum()
    assert gap.probability[1] > 0.95


def test_how_far_a_value_lies_outside_the_rows() -> None:
    law = FittedLaw.from_facts(fit(runs(), "effective-parameters").facts())
    np.testing.assert_allclose(law.beyond(np.array([1e6, 1e8, 5e10]), "params"), [10, 1, 5])


def test_what_is_no_fit_is_refused_by_name() -> None:
    facts = fit(runs(), "effective-parameters").facts()
    with pytest.raises(ValueError, match="no 'theta'"):
        FittedLaw.from_facts({name: value for name, value in facts.items() if name != "theta"})
    with pytest.raises(ValueError, match="'gravity' is unknown"):
        FittedLaw.from_facts({**facts, "law": "gravity"})


DAMAGE = {
    "law": [[], None, 1],
    "theta": [
        [1, 2],
        [],
        None,
        "x",
        [1.5, 3.0, 0.2, -1.0, float("nan")],
        [1.5, 3.0, 0.2, -1.0, None],
        [-1, 3, 0.2, -1, -0.3],
    ],
    "covariance": [
        [[1]],
        [],
        None,
        1,
        np.full((4, 5), 0.1).tolist(),
        np.full((5, 5), np.inf).tolist(),
    ],
    "covariance_obs": [[[1]], "x"],
    "df": [[], -1, "x", True],
    "df_obs": [{}, -1],
    "obs_sd": [[], -1, "x", np.inf],
    "irreducible": [None, -1, "x"],
    "levels": [None, "x", 1, [3.0, 3.0], [3.0, "x"], [[3], [4]], [-3.0, 4.0]],
    "range": [
        None,
        [],
        "x",
        {},
        {"params": 1, "k": [3, 4]},
        {"params": [2, 1], "k": [3, 4]},
        {"params": [0, 1], "k": [3, 4]},
    ],
    "columns": [1, [], {"k": 1}],
    "loss": [{}, None, "x"],
    "converged": [None, "yes", 1],
    "warnings": [None, "x", [1], 1],
}


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    return fit(runs(), "effective-parameters").facts()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values])
def test_a_damaged_fit_is_refused_by_the_key(facts: dict[str, object], key: str, value: object) -> None:
    assert len(facts["theta"]) == 5
    with pytest.raises(ValueError, match=key) as refusal:
        FittedLaw.from_facts({**facts, key: value})
    assert len(str(refusal.value)) < 300


def test_numbers_too_large_for_a_float_are_refused(facts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="obs_sd"):
        FittedLaw.from_facts({**facts, "obs_sd": 10**400})


@pytest.mark.parametrize(
    "missing",
    [
        {"converged": False},
        {"covariance": np.full((5, 5), None).tolist()},
        {"covariance": (-np.eye(5)).tolist()},
    ],
)
def test_a_fit_that_did_not_converge_or_has_no_covariance_gives_no_interval(
    facts: dict[str, object], missing: dict[str, object]
) -> None:
    law = FittedLaw.from_facts({**facts, **missing})
    frame = law.get_prediction(pd.DataFrame({"params": [1e9], "k": [4.0]})).summary_frame(0.1)
    assert np.isfinite(frame["mean"]).all()
    assert frame.drop(columns="mean").isna().all().all()

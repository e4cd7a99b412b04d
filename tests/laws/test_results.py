"""Predictions with their intervals, and a fit as JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from kbitlib.laws import fit
from kbitlib.laws.forms import FORMS
from kbitlib.laws.surface import Surface

CLASSICAL = ("mean", "mean_se", "mean_ci_lower", "mean_ci_upper", "obs_ci_lower", "obs_ci_upper")


def runs(rows: int = 60, noise: float = 0.01, random_state: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(random_state)
    params, tokens = np.exp(random.uniform(17, 23, rows)), np.exp(random.uniform(20, 26, rows))
    loss = (1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37) * np.exp(noise * random.standard_normal(rows))
    return pd.DataFrame({"params": params, "tokens": tokens, "loss": loss})


def family(random: np.random.Generator, models: int = 6) -> pd.DataFrame:
    """Models of a power law at seven k each; every model has luck that its k share."""
    params, k = np.repeat(np.geomspace(1e4, 1e7, models), 7), np.tile(np.arange(2, 9), models)
    luck = np.repeat(0.01 * random.standard_normal(models), 7) + 0.003 * random.standard_normal(7 * models)
    bits = params * k
    table = pd.DataFrame({"params": params, "k": k, "total_bits": bits, "model": [f"{n:.3g}" for n in params]})
    return table.assign(loss=12 * bits**-0.1 * np.exp(luck))


# --- predictions ---


def test_predictions_of_a_linear_law_are_those_of_statsmodels() -> None:
    table, new = runs(), runs(5, random_state=1)
    found = fit(table, "power").get_prediction(new).summary_frame(0.1)
    line, at = sm.OLS(np.log(table["loss"]), sm.add_constant(-np.log(table["params"]))), -np.log(new["params"])
    expected = line.fit(cov_type="HC3", use_t=True).get_prediction(sm.add_constant(at)).summary_frame(0.1)
    model_based = line.fit().get_prediction(sm.add_constant(at)).summary_frame(0.1)
    expected = expected.assign(**{name: model_based[name] for name in CLASSICAL[4:]})  # of a new row
    assert tuple(found.columns) == CLASSICAL
    for name in CLASSICAL:
        if name != "mean_se":
            assert np.log(found[name]).to_numpy() == pytest.approx(expected[name].to_numpy())
    assert found["mean_se"].to_numpy() == pytest.approx((expected["mean_se"] * found["mean"]).to_numpy())


@pytest.mark.parametrize("loss", ["huber", "log-squared", "squared"])
def test_a_prediction_has_the_mean_within_its_intervals(loss: str) -> None:
    results, new = fit(runs(), loss=loss), runs(8, random_state=2).set_index(np.arange(70, 78))
    made = results.get_prediction(new)
    frame = made.summary_frame()
    assert made.predicted_mean.to_numpy() == pytest.approx(results.predict(new).to_numpy())
    assert frame.index.equals(new.index)
    assert (frame["obs_ci_lower"] < frame["mean_ci_lower"]).all()
    assert (frame["mean_ci_lower"] < frame["mean"]).all()
    assert (frame["mean"] < frame["mean_ci_upper"]).all()
    assert (frame["mean_ci_upper"] < frame["obs_ci_upper"]).all()
    assert (made.conf_int(0.5)[1] < made.conf_int(0.05)[1]).all()
    assert (made.se_obs > made.se_mean).all()


def test_new_rows_fall_inside_as_often_as_promised() -> None:
    held = 0
    for state in range(60):
        ends = fit(runs(40, random_state=state), loss="log-squared").get_prediction(
            one := runs(1, random_state=1000 + state)
        )
        low, high = ends.conf_int(0.1, obs=True).iloc[0]
        held += low <= one["loss"].iloc[0] <= high
    assert stats.binomtest(held, 60, 0.9).pvalue > 0.01


def test_the_next_model_falls_inside_as_often_as_promised() -> None:
    """All seven k of a model share its luck, so that one k a family is counted."""
    random = np.random.default_rng(0)
    held = {"by model": 0, "independent rows": 0}
    for _ in range(200):
        table = family(random, 7)
        largest = table["params"] == table["params"].max()
        one = table[largest & (table["k"] == 4)]
        for name, groups in (("by model", "model"), ("independent rows", None)):
            made = fit(table[~largest], "total-bits", groups=groups).get_prediction(one)
            low, high = made.conf_int(0.1, obs=True).iloc[0]
            held[name] += low <= one["loss"].iloc[0] <= high
    assert stats.binomtest(held["by model"], 200, 0.9).pvalue > 0.01
    assert held["independent rows"] < held["by model"]


def test_a_known_irreducible_loss_is_added_to_both_ends() -> None:
    table = runs()
    plain = fit(table, "power").get_prediction(table).summary_frame()
    lifted = fit(table.assign(loss=table["loss"] + 0.7), "power", irreducible=0.7).get_prediction(table).summary_frame()
    shifted = lifted.drop(columns="mean_se") - 0.7
    assert shifted.to_numpy() == pytest.approx(plain.drop(columns="mean_se").to_numpy())


def test_where_no_interval_can_be_given_the_mean_still_is() -> None:
    table = runs(2)
    frame = fit(table, "power").get_prediction(table).summary_frame()
    assert frame["mean"].to_numpy() == pytest.approx(table["loss"].to_numpy())
    assert frame.drop(columns="mean").isna().all(axis=None)


def test_bad_tables_are_refused_by_name() -> None:
    results = fit(family(np.random.default_rng(0)), "total-bits")
    with pytest.raises(ValueError, match="k = 9 was not among the rows fitted"):
        results.get_prediction(pd.DataFrame({"total_bits": [1e6], "k": [9]}))
    with pytest.raises(ValueError, match="the table is empty"):
        results.get_prediction(pd.DataFrame({"total_bits": [], "k": []}))


@pytest.mark.parametrize("alpha", [0, 1, -1, 2, np.nan, "a", None, True])
def test_a_level_is_between_0_and_1(alpha: float) -> None:
    results = fit(runs(), "power")
    made = results.get_prediction(runs(3))
    for asked in (results.conf_int, made.conf_int, made.summary_frame):
        with pytest.raises(ValueError, match=rf"alpha is {alpha!r}; a number between 0 and 1 is allowed"):
            asked(alpha)


# --- facts ---


def test_facts_are_json_and_predict_without_the_rows() -> None:
    table = family(np.random.default_rng(0)).rename(columns={"total_bits": "bits"})
    results = fit(table, "total-bits", columns={"total_bits": "bits"})
    facts = json.loads(json.dumps(results.facts(), allow_nan=False))
    wanted = "law n params se ci95 objective gradient_norm converged identified warnings formula source loss cov_type"
    wanted += " cov_reason covariance theta df groups levels range columns boundary irreducible resid_sd"
    assert set(wanted.split()) <= set(facts)
    assert facts["columns"] == {"total_bits": "bits"}
    assert facts["groups"] == 6
    assert facts["range"] == {"total_bits": [table["bits"].min(), table["bits"].max()], "k": [2, 8]}
    surface = Surface(
        FORMS[facts["law"]], {"total_bits": np.array([1e6]), "k": np.array([4.0])}, np.array(facts["levels"])
    )
    log_mean, jacobian = surface.log_mean_and_jacobian(np.array(facts["theta"])[None])
    variance = jacobian[0].T @ np.array(facts["covariance_obs"]) @ jacobian[0] + facts["obs_sd"] ** 2
    width = stats.t.ppf(0.975, facts["df_obs"]) * np.sqrt(variance[0, 0])
    expected = results.get_prediction(pd.DataFrame({"bits": [1e6], "k": [4]})).summary_frame()
    assert np.exp(log_mean[0] + width) == pytest.approx(expected["obs_ci_upper"].to_numpy())


def test_facts_of_every_loss_hold_no_nan() -> None:
    for loss in ("huber", "squared"):
        json.dumps(fit(runs(), loss=loss).facts(), allow_nan=False)
    none = fit(runs(2), "power").facts()
    json.dumps(none, allow_nan=False)
    assert none["ci95"]["alpha"] == [None, None]
    assert none["cov_type"] == "none"


def test_rows_of_one_model_without_its_name_are_warned_of() -> None:
    random = np.random.default_rng(0)
    rows = [
        (n, k, 1 + 30 * (n * f) ** -0.3) for n in np.geomspace(1e6, 1e9, 6) for k, f in ((3, 0.5), (4, 0.8), (16, 1))
    ]
    table = pd.DataFrame(rows, columns=["params", "k", "loss"])
    table["loss"] *= np.exp(0.002 * random.standard_normal(len(table)))
    alone = fit(table, "effective-parameters")
    assert any("18 rows are of 6 models that differ in bits alone" in sentence for sentence in alone.warnings)
    named = fit(table.assign(model=table["params"].astype(str)), "effective-parameters")
    assert not any("differ in bits alone" in sentence for sentence in named.warnings)

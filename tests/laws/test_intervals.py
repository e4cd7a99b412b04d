"""Kinds of intervals: equal to statsmodels' where that has them, offered only where they hold, and said to be so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from kbitlib.laws import LawResults, fit
from kbitlib.laws.estimate import Minimum
from kbitlib.laws.intervals import why_not
from kbitlib.laws.uncertainty import covariance_of

KINDS = {"delta", "sandwich", "percentile", "bca", "profile-f"}
OF_GROUPS = {"cr3", "random-effects", "seed-variance", "cluster-bootstrap"}


def runs(rows: int = 60, spread: float | None = None, random_state: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(random_state)
    params, tokens = np.exp(random.uniform(17, 23, rows)), np.exp(random.uniform(20, 26, rows))
    if spread is not None:
        tokens = 20 * params * np.exp(spread * random.standard_normal(rows))
    loss = (1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37) * np.exp(0.01 * random.standard_normal(rows))
    return pd.DataFrame({"params": params, "tokens": tokens, "loss": loss})


def family(models: int = 6, random_state: int = 0) -> pd.DataFrame:
    """Every model at seven k, with luck of its own that all its k share."""
    random = np.random.default_rng(random_state)
    params, k = np.repeat(np.geomspace(1e4, 1e7, models), 7), np.tile(np.arange(2, 9), models)
    luck = np.repeat(0.005 * random.standard_normal(models), 7) + 0.002 * random.standard_normal(7 * models)
    table = pd.DataFrame({"params": params, "k": k, "total_bits": params * k, "model": [f"{n:.2g}" for n in params]})
    return table.assign(loss=12 * (params * k) ** -0.1 * np.exp(luck))


def offered(results: LawResults) -> set[str]:
    return {kind for kind, refusal in results.offered.items() if not refusal}


# --- what they are ---


def test_of_a_linear_law_they_are_those_of_statsmodels() -> None:
    table = runs()
    results = fit(table, "power")
    design = sm.add_constant(-np.log(table["params"]))
    plain, robust = (
        sm.OLS(np.log(table["loss"]), design).fit(**how) for how in ({}, {"cov_type": "HC3", "use_t": True})
    )
    for kind, own in (("delta", plain), ("profile-f", plain), ("sandwich", robust)):
        ends = results.conf_int(kind=kind)
        expected = own.conf_int().to_numpy()
        assert ends.loc["alpha"].to_numpy() == pytest.approx(expected[1], rel=1e-3)
        assert np.log(ends.loc["A"].to_numpy()) == pytest.approx(expected[0], rel=1e-3)


def test_bca_is_that_of_scipy() -> None:
    table = runs(40)
    table["loss"] *= np.exp(0.2 * np.random.default_rng(1).exponential(size=40))  # skewed, so that it differs
    results = fit(table, "power")

    def slope(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.polyfit(x, y, 1)[0])

    logs = -np.log(table["params"]), np.log(table["loss"])
    expected = stats.bootstrap(
        logs, slope, paired=True, vectorized=False, method="BCa", n_resamples=2000, rng=np.random.default_rng(2)
    ).confidence_interval
    found, width = results.conf_int(kind="bca").loc["alpha"], expected.high - expected.low
    assert found.to_numpy() == pytest.approx([expected.low, expected.high], abs=0.1 * width)


def test_all_kinds_agree_where_all_hold() -> None:
    results = fit(runs(240), loss="log-squared")
    assert offered(results) == KINDS
    widths = {kind: np.diff(results.conf_int(kind=kind).loc["alpha"])[0] for kind in KINDS}
    assert max(widths.values()) < 1.35 * min(widths.values())
    assert np.diff(results.conf_int(0.5, kind="bca").loc["alpha"]) < 0.5 * widths["bca"]


# --- where they are offered ---


def test_by_hubers_loss_the_bootstraps_alone_hold() -> None:
    assert offered(fit(runs(240))) == {"percentile", "bca"}
    results = fit(runs(30))
    assert offered(results) == {"bca"}
    assert results.cov_type == "BCa bootstrap, 1000 resamples of rows"
    with pytest.raises(ValueError, match="percentiles need 20 rows a parameter; 30 rows are there"):
        results.conf_int(kind="percentile")
    with pytest.raises(ValueError, match="interval 'sandwich' does not hold here: Huber's loss is no sum of squares"):
        results.conf_int(kind="sandwich")


def test_of_few_rows_percentiles_are_not_offered() -> None:
    assert offered(fit(runs(30), loss="log-squared")) == KINDS - {"percentile"}


def test_a_threshold_beyond_all_residuals_is_least_squares() -> None:
    table = runs()
    wide, plain = fit(table, huber_delta=1.0), fit(table, loss="log-squared")
    assert offered(wide) == offered(plain)
    for kind in ("delta", "profile-f"):
        assert wide.conf_int(kind=kind).to_numpy() == pytest.approx(plain.conf_int(kind=kind).to_numpy(), rel=1e-3)


def test_nearly_collinear_columns_leave_the_profile() -> None:
    results = fit(runs(120, spread=0.25), loss="log-squared")
    assert offered(results) == {"profile-f"}
    assert results.cov_type == "profile-F"
    assert "nearly move together (variance inflation" in results.cov_reason
    ends = results.conf_int()
    assert (ends[0] <= results.params).all()
    assert (results.params <= ends[1]).all()
    assert any("nearly move together" in said for said in results.warnings)
    flat = fit(runs(60, spread=0.05), loss="log-squared")
    unbounded = np.isinf(flat.conf_int()).any(axis=1) | (flat.conf_int()[0] == 0)
    assert [said.split(" is not")[0].removeprefix("log ") for said in flat.flat_directions()] == [
        name for name in unbounded.index[unbounded] if name != "E"
    ]
    assert set(flat.flat_directions()) <= set(flat.warnings)
    by_huber = fit(runs(120, spread=0.25))
    assert offered(by_huber) == set()
    assert by_huber.conf_int().isna().all(axis=None)
    assert any("no interval can be given: params and tokens nearly move" in said for said in by_huber.warnings)


def test_of_few_models_the_rows_are_not_independent() -> None:
    results = fit(family(), "total-bits")
    assert offered(results) == {"cr3", "random-effects"}
    assert results.cov_type == "CR3 by model (6 groups), t"
    assert results.cov_reason == "the rows of one model are not independent, and there are 6"
    with pytest.raises(ValueError, match="6 groups; a bootstrap of clusters needs at least 10"):
        results.conf_int(kind="cluster-bootstrap")
    with pytest.raises(ValueError, match="rows of one model are not independent"):
        results.conf_int(kind="delta")
    assert "cr3" not in offered(fit(family(), "total-bits", loss="huber"))


def test_the_summary_says_which_and_why() -> None:
    text = " ".join(str(fit(family(), "total-bits").summary()).split())
    assert "Intervals: CR3 by model (6 groups), t: the rows of one model are not independent, and there are 6" in text


def test_there_is_no_flat_direction_without_a_profile() -> None:
    assert fit(runs(), loss="log-squared").flat_directions() == []
    with pytest.raises(ValueError, match="no profile holds here: Huber's loss is no sum of squares"):
        fit(runs()).flat_directions()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match="interval 'bayes' is unknown; delta, sandwich, percentile, bca, profile-f, cr3"
    ):
        fit(runs()).conf_int(kind="bayes")


def test_as_many_parameters_as_rows_leave_none() -> None:
    results = fit(runs(2), "power")
    assert offered(results) == set()
    assert set(results.offered) == KINDS | OF_GROUPS


def growing(loss: str) -> LawResults:
    """A fit of losses that grow with the model, which the law cannot."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"params": 10 ** random.uniform(7, 10, 60), "tokens": 10 ** random.uniform(9, 11, 60)})
    return fit(table.assign(loss=1 + table["params"] ** 0.1), loss=loss)


def test_a_descent_that_ended_on_the_way_leaves_none() -> None:
    results = growing("log-squared")
    assert not results.converged
    assert set(results.offered.values()) == {"no minimum was reached"}
    assert results.conf_int().isna().all(axis=None)
    assert results.get_prediction(runs(3)).summary_frame().drop(columns="mean").isna().all(axis=None)
    with pytest.raises(ValueError, match="interval 'delta' does not hold here: no minimum was reached"):
        results.conf_int(kind="delta")


@pytest.mark.parametrize("law", ["chinchilla", "power"])
def test_of_fewer_than_ten_rows_bca_is_not_offered(law: str) -> None:
    assert "bca" in offered(fit(runs(10), law, loss="huber"))
    assert offered(fit(runs(9), law, loss="huber")) == set()
    refusal = f"BCa needs 10 rows for {5 if law == 'chinchilla' else 2} parameters; 9 rows are there"
    assert fit(runs(9), law, loss="log-squared").offered["bca"] == refusal


def test_of_a_line_by_least_squares_bca_needs_as_many_rows_as_percentiles() -> None:
    few, enough = fit(runs(39), "power"), fit(runs(40), "power")
    assert few.offered["bca"] == few.offered["percentile"] == "percentiles need 20 rows a parameter; 39 rows are there"
    assert {"bca", "percentile"} <= offered(enough)


def test_by_hubers_loss_few_residuals_within_the_threshold_prove_nothing() -> None:
    table = runs(6)
    results = fit(table.assign(loss=1.8 + 480 * table["params"] ** -0.35 + 2100 * table["tokens"] ** -0.37))
    assert results.estimate.least_squares
    assert set(results.offered.values()) >= {
        "by Huber's loss an interval needs 10 rows for 5 parameters; 6 rows are there"
    }
    assert offered(results) == set()
    assert results.get_prediction(runs(3)).conf_int(obs=True).isna().all(axis=None)


def test_resamples_that_reach_no_minimum_are_few_or_there_is_no_bootstrap() -> None:
    table = runs()
    noise = fit(table.assign(loss=np.exp(np.random.default_rng(1).normal(1, 0.3, 60))))
    assert noise.converged
    missed = noise.estimate.resamples - len(noise.estimate.draws)
    assert missed > 50
    assert noise.offered["bca"] == f"{missed} of 1000 resamples reached no minimum"
    assert f"no interval can be given: {noise.offered['bca']}" in noise.warnings
    assert noise.boundary == ["E"]
    assert noise.conf_int().isna().all(axis=None)


def test_so_it_is_of_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    results = fit(family(12), "total-bits")
    kept = results.estimate.group_draws[:900]
    monkeypatch.setitem(vars(results.estimate), "group_draws", kept)
    assert results.offered["cluster-bootstrap"] == "100 of 1000 resamples reached no minimum"


@pytest.mark.filterwarnings("error")
def test_draws_beyond_a_float_make_no_noise() -> None:
    results = growing("huber")
    assert offered(results) == {"bca"}
    assert results.bse.notna().all()
    assert results.conf_int().drop("E").notna().all(axis=None)
    assert results.conf_int().loc["E"].isna().all()  # every refit lies on the boundary
    results.summary()
    results.get_prediction(runs(3)).summary_frame()


@pytest.mark.filterwarnings("error")
def test_a_term_that_vanished_leaves_no_sandwich() -> None:
    table = runs()
    results = fit(table.assign(loss=1 + table["params"] ** 0.1), loss="log-squared")  # B is e^-345
    assert results.offered["sandwich"] == "the rows do not determine every parameter at the minimum"


@pytest.mark.filterwarnings("error")
def test_a_loss_near_the_least_float_is_said_in_words() -> None:
    table = runs()
    table.loc[5, "loss"] = 1e-300
    results = fit(table)
    assert set(results.offered.values()) == {"no minimum was reached"}
    results.summary()
    reached = replace(results.estimate, converged=True)
    assert why_not(reached, "bca") == "derivatives at the minimum are beyond what a float holds"


# --- on a boundary ---


def test_an_interval_on_the_boundary_is_one_sided() -> None:
    random = np.random.default_rng(0)
    params = np.repeat(np.geomspace(1e6, 1e9, 8), 8)
    k = np.tile([2, 3, 4, 16], 16)
    f = np.select([k == 2, k == 3, k == 4], [0.2, 0.5, 0.8], 1.0)
    loss = (-0.2 + 9 * (params * f) ** -0.08) * np.exp(0.002 * random.standard_normal(64))  # E would be negative
    results = fit(pd.DataFrame({"params": params, "k": k, "loss": loss}), "effective-parameters")
    assert results.boundary == ["E"]
    assert "boundary" in results.offered["delta"]
    assert "boundary" in results.cov_reason
    low, high = results.conf_int().loc["E"]
    assert low == 0 < high
    assert high < 1.5  # the Delta method would say 5: alpha and E trade off along a curve


def test_few_draws_that_run_off_do_not_make_the_covariance() -> None:
    random = np.random.default_rng(0)
    draws = random.multivariate_normal([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]], size=20_000)
    found = covariance_of(draws)
    assert found == pytest.approx(np.array([[1.0, 0.9], [0.9, 1.0]]), abs=0.04)
    draws[:100] *= 1e6
    assert covariance_of(draws) == pytest.approx(found, rel=0.1)


# --- several seeds, many models ---


def with_seeds(seeds: pd.Series | None) -> LawResults:
    """A fit whose rows are three runs of each model."""
    table = pd.concat([family(random_state=s).assign(seed=s) for s in range(3)], ignore_index=True)
    fitted = fit(table, "total-bits")
    minimum = Minimum(fitted.theta[None], np.array([fitted.objective / 2]), np.array([fitted.gradient_norm]))
    return LawResults(
        fitted.surface,
        table["loss"],
        fitted.loss,
        minimum,
        columns={},
        groups=table["model"],
        irreducible=0,
        seeds=seeds,
    )


def test_several_seeds_of_a_size_tell_its_variance() -> None:
    seeds = pd.Series(np.repeat([0, 1, 2], 42))
    results = with_seeds(seeds)
    assert offered(results) == {"cr3", "seed-variance"}
    low, high = results.conf_int(kind="seed-variance").loc["alpha[4]"]
    assert low < results.params["alpha[4]"] < high
    with pytest.raises(ValueError, match="runs of one size differ by their seeds, which seed-variance counts"):
        results.conf_int(kind="random-effects")
    for alike in (None, pd.Series(np.zeros(126))):
        assert "no column seed tells several runs" in with_seeds(alike).offered["seed-variance"]


def test_a_bootstrap_of_clusters_from_ten_of_them_on() -> None:
    results = fit(family(12), "total-bits")
    assert offered(results) == {"cr3", "random-effects", "cluster-bootstrap"}
    ends, by_cr3 = results.conf_int(kind="cluster-bootstrap"), results.conf_int()
    assert np.diff(ends.loc["alpha[4]"]) == pytest.approx(np.diff(by_cr3.loc["alpha[4]"]), rel=0.3)


def test_of_many_groups_cr3_is_the_jackknife_without_refits() -> None:
    table = runs(180, random_state=1).assign(model=np.repeat(np.arange(60), 3))
    results = fit(table, loss="log-squared")
    assert results.cov_type == "CR3 by model (60 groups), t"
    alone = [fit(table[table["model"] != m], loss="log-squared", groups=None).params["alpha"] for m in range(60)]
    expected = np.sqrt(59 / 60 * np.sum((np.array(alone) - results.params["alpha"]) ** 2))
    assert results.bse["alpha"] == pytest.approx(expected, rel=0.05)

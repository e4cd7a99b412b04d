"""Fits: published optima, recovery of known laws, manners of a result, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from kbitlib.laws import NotIdentified, fit

Simulate = Callable[..., pd.DataFrame]
CHINCHILLA_CSV = Path(__file__).parents[3] / "shared" / "data" / "chinchilla.csv"
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    if not CHINCHILLA_CSV.exists():
        pytest.skip(f"the points of Hoffmann et al. 2022, figure 4, are not there: {CHINCHILLA_CSV}")
    return pd.read_csv(CHINCHILLA_CSV)


def surface(rows: int = 60, noise: float = 0.0, random_state: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(random_state)
    params, tokens = np.exp(random.uniform(17, 23, rows)), np.exp(random.uniform(20, 26, rows))
    loss = TRUTH["E"] + TRUTH["A"] * params ** -TRUTH["alpha"] + TRUTH["B"] * tokens ** -TRUTH["beta"]
    return pd.DataFrame(
        {"params": params, "tokens": tokens, "loss": loss * np.exp(noise * random.standard_normal(rows))}
    )


# --- published optima (Hoffmann et al. 2022's points, Besiroglu et al. 2024's objective) ---


def test_chinchilla_reaches_the_minimum_below_the_published_fit(published: pd.DataFrame) -> None:
    results = fit(published[published["in_epoch_fit"] == 1])
    assert results.nobs == 240
    assert results.converged
    assert results.objective == pytest.approx(0.00101827402, rel=1e-6)
    assert results.params["E"] == pytest.approx(1.81722, abs=2e-4)
    assert results.params["A"] == pytest.approx(477.83, abs=0.5)
    assert results.params["B"] == pytest.approx(2143.4, abs=3)
    assert results.params["alpha"] == pytest.approx(0.347311, abs=1e-4)
    assert results.params["beta"] == pytest.approx(0.367172, abs=1e-4)
    optimal_size = results.params["beta"] / (results.params["alpha"] + results.params["beta"])
    assert optimal_size == pytest.approx(0.51390, abs=1e-4)


def test_chinchilla_intervals_are_the_published_bootstrap_ones(published: pd.DataFrame) -> None:
    results = fit(published[published["in_epoch_fit"] == 1])
    for name, sd, tolerance in (
        ("E", 0.0257, 0.15),
        ("A", 124.5, 0.2),
        ("alpha", 0.0154, 0.15),
        ("beta", 0.0206, 0.15),
    ):
        assert results.bse[name] == pytest.approx(sd, rel=tolerance)
    assert results.conf_int().loc["alpha"].to_numpy() == pytest.approx([0.317, 0.373], abs=0.006)
    assert results.conf_int().loc["beta"].to_numpy() == pytest.approx([0.331, 0.415], abs=0.008)


def test_published_flops_identify_no_exponent(published: pd.DataFrame) -> None:
    with pytest.raises(NotIdentified, match="not identified") as refusal:
        fit(published, "tutorial")
    assert refusal.value.identified == ["log alpha + 1.792 delta", "beta + delta", "gamma + delta"]


# --- recovery of known laws ---


@pytest.mark.parametrize("loss", ["huber", "log-squared", "squared"])
def test_chinchilla_recovers_an_exact_law(loss: str) -> None:
    results = fit(surface(), loss=loss)
    assert results.params.to_dict() == pytest.approx(TRUTH, rel=1e-5)
    assert results.converged


def test_a_law_without_irreducible_loss_ends_on_the_boundary() -> None:
    random = np.random.default_rng(0)
    params = np.repeat(np.geomspace(1e6, 1e9, 6), 4)
    k = np.tile([2, 3, 4, 16], 6)
    f = np.select([k == 2, k == 3, k == 4], [0.2, 0.5, 0.8], 1.0)
    loss = -0.2 + 9 * (params * f) ** -0.08  # E would be negative
    table = pd.DataFrame({"params": params, "k": k, "loss": loss * np.exp(0.002 * random.standard_normal(24))})
    results = fit(table, "effective-parameters")
    assert results.boundary == ["E"]
    assert results.params["E"] == 0
    assert results.converged
    assert results.conf_int().loc["E", 0] == 0 < results.conf_int().loc["E", 1]
    assert "E lies on its boundary 0: its interval is one-sided" in results.warnings


def test_a_quantized_model_that_is_by_chance_the_better_one() -> None:
    params, k = np.repeat(np.geomspace(1e4, 1e7, 6), 7), np.tile(np.arange(2, 9), 6)
    table = pd.DataFrame({"params": params, "k": k, "delta": 40 * params**-0.05 * np.exp(-0.5 * k * params**0.08)})
    table.loc[41, "delta"] = -1e-5
    found = fit(table, "degradation", loss="squared").params
    assert found.to_dict() == pytest.approx({"C": 40, "c": -0.05, "g": 0.5, "h": 0.08}, rel=1e-2)
    with pytest.raises(ValueError, match="column 'delta' holds -1e-05 in row 41"):
        fit(table, "degradation")


def test_total_bits_is_one_line_a_k(family: Simulate) -> None:
    table = family()
    results = fit(table, "total-bits")
    for k, rows in table.groupby("k"):
        line = np.polyfit(np.log(rows["total_bits"]), np.log(rows["loss"]), 1)
        assert results.params[f"alpha[{k}]"] == pytest.approx(-line[0])
        assert np.log(results.params[f"A[{k}]"]) == pytest.approx(line[1])
    lifted = fit(table.assign(loss=table["loss"] + 0.7), "total-bits", irreducible=0.7)
    assert lifted.params.to_numpy() == pytest.approx(results.params.to_numpy())
    assert lifted.predict(table).to_numpy() == pytest.approx(results.predict(table).to_numpy() + 0.7)


def test_a_linear_law_is_statsmodels_least_squares() -> None:
    table = surface(noise=0.02)
    results = fit(table, "power")
    own = sm.OLS(np.log(table["loss"]), sm.add_constant(-np.log(table["params"]))).fit(cov_type="HC3", use_t=True)
    assert results.params.to_numpy() == pytest.approx([np.exp(own.params.iloc[0]), own.params.iloc[1]])
    assert results.bse["alpha"] == pytest.approx(own.bse.iloc[1])
    assert results.conf_int().loc["alpha"].to_numpy() == pytest.approx(own.conf_int().iloc[1].to_numpy())
    assert results.ols.rsquared == pytest.approx(own.rsquared)
    assert results.cov_type == "HC3, t"


def test_huber_resists_what_least_squares_does_not() -> None:
    table = surface(noise=0.002)
    table.loc[:5, "loss"] *= 1.5
    robust, plain = fit(table), fit(table, loss="log-squared")
    assert abs(robust.params["alpha"] - TRUTH["alpha"]) < 0.03
    assert abs(plain.params["alpha"] - TRUTH["alpha"]) > 0.03


# --- manners ---


def test_a_result_has_statsmodels_manners() -> None:
    table = surface(noise=0.01).set_index(np.arange(100, 160))
    results = fit(table, loss="log-squared")
    assert list(results.params.index) == list(results.bse.index) == list(results.conf_int().index) == list(TRUTH)
    assert (results.conf_int()[0] < results.params).all()
    assert (results.conf_int(alpha=0.5)[1] < results.conf_int()[1]).all()
    assert results.predict(table).to_numpy() == pytest.approx(results.fittedvalues.to_numpy())
    assert results.predict(table).index.equals(table.index)
    assert results.resid.to_numpy() == pytest.approx(np.log(table["loss"] / results.fittedvalues).to_numpy())
    assert results.objective == pytest.approx((results.resid**2).sum())
    assert results.nobs == 60
    assert results.df_resid == 55
    assert results.gradient_norm < 1e-9
    assert results.identified.all()
    assert results.correlation().loc["A", "alpha"] > 0.9
    text = str(results.summary())
    for words in ("chinchilla", "Hoffmann et al. 2022", "alpha", "0.975]", "Delta method, t", "True"):
        assert words in text


def test_columns_of_other_names_are_mapped() -> None:
    table = surface()
    renamed = table.rename(columns={"params": "N", "tokens": "D", "loss": "L"})
    results = fit(renamed, columns={"params": "N", "tokens": "D", "loss": "L"})
    assert results.params.to_numpy() == pytest.approx(fit(table).params.to_numpy())
    assert results.predict(renamed).to_numpy() == pytest.approx(renamed["L"].to_numpy())


def test_delta_intervals_hold_the_truth() -> None:
    held = 0
    for state in range(40):
        ends = fit(surface(rows=40, noise=0.01, random_state=state), loss="log-squared").conf_int().loc["alpha"]
        held += ends[0] <= TRUTH["alpha"] <= ends[1]
    assert held >= 34  # at 95 %, fewer happen once in 300 runs


def test_rows_of_one_model_are_a_group() -> None:
    random = np.random.default_rng(3)
    table = pd.concat([surface(rows=10, random_state=s).assign(model=f"m{s}") for s in range(8)], ignore_index=True)
    common = dict(zip(table["model"].unique(), 0.02 * random.standard_normal(8), strict=True))
    table["loss"] *= np.exp(table["model"].map(common) + 0.001 * random.standard_normal(80))
    grouped, independent = fit(table, loss="log-squared"), fit(table, loss="log-squared", groups=None)
    assert grouped.params.equals(independent.params)
    assert grouped.cov_type == "CR3 by model (8 groups), t"
    assert grouped.bse["E"] > independent.bse["E"]
    two = fit(table[table["model"].isin(["m0", "m1"])], loss="log-squared")
    assert any("2 groups alone" in sentence for sentence in two.warnings)


def grid_of_runs() -> pd.DataFrame:
    """Six models, each measured at five lengths of its run; every model has luck of its own."""
    random = np.random.default_rng(5)
    params, tokens = np.repeat(np.geomspace(2e4, 2e6, 6), 5), np.tile(np.geomspace(2e5, 8e6, 5), 6)
    luck = np.repeat(0.005 * random.standard_normal(6), 5) + 0.001 * random.standard_normal(30)
    loss = (0.7 + 20 * params**-0.35 + 60 * tokens**-0.4) * np.exp(luck)
    return pd.DataFrame({"params": params, "tokens": tokens, "loss": loss, "model": np.repeat(list("abcdef"), 5)})


def test_a_grid_of_six_models_has_cr3_intervals_by_huber_too() -> None:
    results = fit(grid_of_runs())
    assert results.cov_type == "CR3 by model (6 groups), t"
    ends = results.conf_int()
    for name, value in {"E": 0.7, "A": 20, "B": 60, "alpha": 0.35, "beta": 0.4}.items():
        assert ends.loc[name, 0] < value < ends.loc[name, 1]
    assert np.isfinite(results.bse).all()


def test_no_interval_where_a_model_carries_a_parameter_alone() -> None:
    table = grid_of_runs()
    table["tokens"] = np.where(table["model"] == "a", table["tokens"], 8e6)  # one model alone has several lengths
    results = fit(table.drop_duplicates(), loss="log-squared")
    assert results.cov_type == "none"
    assert results.bse.isna().all()
    assert any("without a the parameters are not identified" in sentence for sentence in results.warnings)


def test_jackknife_of_groups_is_cr3_for_a_linear_law() -> None:
    table = pd.concat([surface(rows=6, noise=0.05, random_state=s).assign(model=f"m{s}") for s in range(6)])
    table = table.reset_index(drop=True)
    closed = fit(table, "power")
    jackknife = fit(table, "power", loss="huber", huber_delta=1e3)  # never linear: least squares by the other route
    assert jackknife.params.to_numpy() == pytest.approx(closed.params.to_numpy(), rel=1e-6)
    assert jackknife.bse.to_numpy() == pytest.approx(closed.bse.to_numpy(), rel=1e-4)


def test_as_many_rows_as_parameters_give_no_interval() -> None:
    results = fit(surface(rows=2), "power")
    assert results.conf_int().isna().all(axis=None)
    assert any("as many parameters as rows" in sentence for sentence in results.warnings)


# --- refusals ---


def test_the_tutorials_table_of_three_rows() -> None:
    table = pd.DataFrame({"N": [1e9, 1e10, 1e11], "D": [1e9, 1e10, 1e11], "C": [1e20, 1e21, 1e22]})
    table["accuracy"] = [0.72, 0.78, 0.85]
    names = {"params": "N", "tokens": "D", "flops": "C", "loss": "accuracy"}
    with pytest.raises(NotIdentified, match="3 rows for 4 parameters") as refusal:
        fit(table, "tutorial", columns=names)
    assert refusal.value.names == ["alpha", "beta", "gamma", "delta"]
    assert refusal.value.identified == ["log alpha + 25.33 delta", "beta + gamma + delta"]


def test_one_number_of_tokens_leaves_the_sum() -> None:
    with pytest.raises(NotIdentified, match=r"E, B, beta not identified: tokens is 2e\+09 in every row") as refusal:
        fit(surface().assign(tokens=2e9))
    assert refusal.value.identified == ["A", "alpha", "the sum E + B tokens^-beta"]


def test_bad_input_is_refused_by_name() -> None:
    table = surface()
    with pytest.raises(ValueError, match="law 'chinchila' is unknown; power, tutorial, kaplan, chinchilla"):
        fit(table, "chinchila")
    with pytest.raises(ValueError, match="loss 'l1' is unknown; huber, log-squared, squared are allowed"):
        fit(table, loss="l1")
    with pytest.raises(ValueError, match="huber_delta is -1; a positive number is allowed"):
        fit(table, huber_delta=-1)
    with pytest.raises(ValueError, match="column 'tokens' is missing; the table has params, loss"):
        fit(table.drop(columns="tokens"))
    with pytest.raises(ValueError, match="column 'N' is missing"):
        fit(table, columns={"params": "N"})
    with pytest.raises(ValueError, match="column 'flops' is not used by law chinchilla; it uses params, tokens, loss"):
        fit(table, columns={"flops": "C"})
    with pytest.raises(
        ValueError, match=r"column 'loss' holds -0.5 in row 7; only positive finite numbers are allowed"
    ):
        fit(table.assign(loss=table["loss"].where(table.index != 7, -0.5)))
    with pytest.raises(ValueError, match="column 'tokens' holds nan in row 2"):
        fit(table.assign(tokens=table["tokens"].where(table.index != 2)))
    with pytest.raises(ValueError, match="column 'params' holds many in row 0"):
        fit(table.assign(params="many"))
    with pytest.raises(ValueError, match="the table is empty"):
        fit(table.iloc[:0])
    with pytest.raises(ValueError, match=r"row 0 repeats an earlier row in every column \(1 such rows\)"):
        fit(pd.concat([table, table.iloc[:1]]))
    with pytest.raises(ValueError, match="column 'family' is missing"):
        fit(table, groups="family")
    with pytest.raises(ValueError, match="from 0 to below the smallest loss"):
        fit(table, "power", irreducible=9.0)
    with pytest.raises(ValueError, match="law chinchilla has its own E or none"):
        fit(table, irreducible=0.1)
    with pytest.raises(ValueError, match="a dict is not a table"):
        fit({"params": [1.0]})  # type: ignore[arg-type]


def test_a_k_that_was_not_fitted_is_refused(family: Simulate) -> None:
    table = family()
    results = fit(table, "total-bits")
    with pytest.raises(ValueError, match="k = 9 was not among the rows fitted; 2, 3, 4, 5, 6, 7, 8 were"):
        results.predict(table.assign(k=9))


def test_a_column_taken_for_levels_by_mistake_is_refused() -> None:
    table = pd.DataFrame({"params": np.geomspace(1e6, 1e9, 200), "k": np.linspace(2, 16, 200), "loss": 3.0})
    with pytest.raises(ValueError, match="k has 199 values, each with parameters of its own; 128 at most"):
        fit(table, "effective-parameters")


def test_full_precision_is_known_however_it_is_spelled() -> None:
    sizes = np.geomspace(1e6, 1e9, 6)
    table = pd.concat(
        [
            pd.DataFrame({"params": sizes, "format": label, "loss": 1 + 30 * (factor * sizes) ** -0.3})
            for label, factor in ((" FP16", 1.0), ("nf4", 0.8), ("Full ", 1.0))
        ]
    ).drop_duplicates(["params", "format"])
    results = fit(table, "effective-parameters", columns={"k": "format"})
    assert results.params["f[nf4]"] == pytest.approx(0.8)


def test_a_column_of_lists_is_no_obstacle() -> None:
    table = pd.DataFrame({"params": [1e6, 2e6, 4e6], "loss": [3.0, 2.8, 2.65], "tags": [["a"], ["b"], ["c"]]})
    assert fit(table, "power").nobs == 3


def test_a_negative_degradation_is_refused_with_what_takes_it() -> None:
    table = pd.DataFrame({"params": [1e6, 2e6, 4e6, 8e6], "k": [2, 3, 4, 8], "delta": [0.5, 0.2, 0.1, -0.001]})
    with pytest.raises(ValueError, match="loss = 'squared' takes others"):
        fit(table, "degradation")

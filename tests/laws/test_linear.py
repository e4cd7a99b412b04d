"""Linear laws through statsmodels' own regressions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from kbitlib.laws import fit
from kbitlib.laws.linear import HOW, regress

Simulate = Callable[..., pd.DataFrame]


def power_rows(family: Simulate) -> pd.DataFrame:
    return family(seeds=(3,) * 6).query("k == 4")


@pytest.mark.filterwarnings("ignore::statsmodels.tools.sm_exceptions.ConvergenceWarning")
@pytest.mark.parametrize("how", HOW)
def test_each_is_what_statsmodels_gives_for_the_formula(how: str, family: Simulate) -> None:
    table = power_rows(family)
    formula = {"ols": smf.ols, "rlm": smf.rlm, "quantreg": smf.quantreg, "mixedlm": smf.mixedlm}[how]
    groups = {"groups": table["model"]} if how == "mixedlm" else {}
    theirs = formula("np.log(loss) ~ np.log(params)", table, **groups)
    theirs = theirs.fit(cov_type="HC3", use_t=True) if how == "ols" else theirs.fit()
    ours = regress(table, "power", how)
    assert ours.params[["log A", "alpha"]].to_numpy() == pytest.approx(
        theirs.params.iloc[:2].to_numpy() * [1, -1], rel=1e-4
    )
    assert ours.bse[["log A", "alpha"]].to_numpy() == pytest.approx(theirs.bse.iloc[:2].to_numpy(), rel=1e-3)


def test_least_squares_is_the_fit_itself(family: Simulate) -> None:
    table = family().query("k > 2")
    ours, fitted = regress(table, "total-bits"), fit(table, "total-bits")
    assert np.exp(ours.params["log A[4]"]) == pytest.approx(fitted.params["A[4]"])
    assert ours.params["alpha[8]"] == pytest.approx(fitted.params["alpha[8]"])


def test_robust_ways_resist_an_outlier(family: Simulate) -> None:
    table = power_rows(family)
    clean = regress(table, "power").params["alpha"]
    spoiled = table.assign(loss=table["loss"].where(table.index != table.index[-1], 3 * table["loss"]))
    moved = {how: abs(regress(spoiled, "power", how).params["alpha"] - clean) for how in ("ols", "rlm", "quantreg")}
    assert max(moved["rlm"], moved["quantreg"]) < 0.25 * moved["ols"]


@pytest.mark.filterwarnings("error")
def test_random_effects_find_the_variance_between_models() -> None:
    random = np.random.default_rng(0)
    params = np.repeat(np.geomspace(1e4, 1e7, 40), 5)
    shift = np.repeat(0.03 * random.standard_normal(40), 5)
    loss = 9 * params**-0.1 * np.exp(shift + 0.01 * random.standard_normal(200))
    table = pd.DataFrame({"model": np.repeat(np.arange(40), 5), "params": params, "loss": loss})
    results = regress(table, "power", "mixedlm")
    assert results.scale == pytest.approx(0.01**2, rel=0.3)
    assert results.cov_re.iloc[0, 0] == pytest.approx(0.03**2, rel=0.5)


def test_what_is_not_linear_or_unknown_is_refused(family: Simulate) -> None:
    table = power_rows(family)
    with pytest.raises(ValueError, match="how is 'lasso'; ols, rlm, quantreg, mixedlm are allowed"):
        regress(table, "power", "lasso")
    with pytest.raises(ValueError, match="is not linear in its parameters"):
        regress(family(), "degradation")
    with pytest.raises(ValueError, match="is not linear in its parameters"):
        regress(table, "power", loss="squared")
    with pytest.raises(ValueError, match="column 'run' is missing"):
        regress(table, "power", "mixedlm", by="run")

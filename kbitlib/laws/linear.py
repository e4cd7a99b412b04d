"""statsmodels' regressions of laws that are linear in logarithms: robust, of quantiles, and with random effects."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from kbitlib.laws.fit import fit
from kbitlib.laws.tables import column

HOW = ("ols", "rlm", "quantreg", "mixedlm")


def regress(table: pd.DataFrame, law: str, how: str = "ols", *, by: str = "model", **options: Any) -> Any:
    """Fit a linear law in logarithms with statsmodels, and return statsmodels' own result.

    ``ols`` has HC3 standard errors and t intervals; ``rlm`` is Huber's M-estimator with its threshold at 1.345 robust
    standard deviations (Huber 1964); ``quantreg`` the median (Koenker & Bassett 1978); ``mixedlm`` gives each value of
    column ``by`` (a model, a family) a random intercept, by restricted maximum likelihood (Laird & Ware 1982). A
    coefficient has its parameter's name, ``log A`` where that is positive. ``options`` go to ``fit``; ValueError as
    there, for a law that is not linear, and for another ``how``.
    """
    if how not in HOW:
        raise ValueError(f"how is {how!r}; {', '.join(HOW)} are allowed")
    results = fit(table, law, **options)
    surface = results.surface
    if not surface.form.linear or not results.loss.on_logs:
        raise ValueError(f"law {law} by {results.loss.name} is not linear in its parameters; a law that is, is allowed")
    names = [f"log {name}" if log else name for name, log in zip(surface.names, surface.positive, strict=True)]
    jacobian = surface.log_mean_and_jacobian(np.zeros((1, len(names))))[1][0]
    design = pd.DataFrame(jacobian.T, columns=names, index=table.index)
    response = (np.log(results.fittedvalues - results.irreducible) + results.resid).rename(surface.form.response)
    if how == "ols":
        return sm.OLS(response, design).fit(cov_type="HC3", use_t=True)
    if how == "rlm":
        return sm.RLM(response, design).fit()
    if how == "quantreg":
        return sm.QuantReg(response, design).fit(q=0.5)
    with warnings.catch_warnings():  # statsmodels warns of every variance below .01, whatever the unit
        warnings.filterwarnings("ignore", "The MLE may be on the boundary", ConvergenceWarning)
        return sm.MixedLM(response, design, groups=column(table, by)).fit()

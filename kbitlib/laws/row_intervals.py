"""Intervals where rows are independent: Delta, HC3, percentile and BCa bootstrap, profile-F."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from kbitlib.laws.profile import inverse
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray
from kbitlib.laws.uncertainty import Estimate, Uncertainty, by_quantiles, by_t


def delta(estimate: Estimate) -> Uncertainty:
    """The Delta method with model-based variance and t(n - p) (Seber & Wild 1989, section 5.1)."""
    design, residual = estimate.linearised
    freedom = estimate.surface.rows - len(estimate.theta)
    covariance = inverse(design.T @ design) * (residual @ residual) / freedom
    return by_t("Delta method, t", estimate, covariance, freedom)


def ordinary_least_squares(surface: Surface, response: FloatArray) -> Any:
    """statsmodels' fit of a linear law in logarithms, with HC3 standard errors and t intervals."""
    _, jacobian = surface.log_mean_and_jacobian(np.zeros((1, len(surface.names))))
    design = pd.DataFrame(jacobian[0].T, columns=surface.names)
    return sm.OLS(np.log(response), design).fit(cov_type="HC3", use_t=True)


def sandwich(estimate: Estimate) -> Uncertainty:
    """HC3 of the linearised law, which for a linear law is that of ordinary least squares."""
    design, residual = estimate.linearised
    lengths = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    ols = sm.OLS(residual, design / lengths)
    if np.linalg.matrix_rank(ols.exog) < len(lengths):
        raise ValueError("the rows do not determine every parameter at the minimum")
    if np.max(ols.fit().get_influence().hat_matrix_diag) > 1 - 1e-9:
        raise ValueError("a parameter hangs on one row alone")
    covariance = np.asarray(ols.fit(cov_type="HC3").cov_params()) / np.outer(lengths, lengths)
    return by_t("HC3, t", estimate, covariance, ols.df_resid)


def profile_f(estimate: Estimate) -> Uncertainty:
    """The profile-F interval; its covariance is the Delta method's."""
    return replace(delta(estimate), kind="profile-F", ends=lambda level: estimate.profiles(level).ends)


def percentile(estimate: Estimate) -> Uncertainty:
    """Percentiles of refits to resampled rows."""
    return by_quantiles(_named("percentile", estimate), estimate.draws)


def bca(estimate: Estimate) -> Uncertainty:
    """Percentiles of refits to resampled rows, bias-corrected and accelerated."""
    made = by_quantiles(_named("BCa", estimate), estimate.draws)
    return replace(made, ends=bca_ends(estimate.draws, estimate))


def bca_ends(draws: FloatArray, estimate: Estimate) -> Callable[[float], FloatArray]:
    """Bias-corrected and accelerated ends (Efron 1987); acceleration from the influence of each row on the estimate."""
    design, residual = estimate.linearised
    with np.errstate(over="ignore", invalid="ignore"):
        influence = (design * estimate.loss.psi(residual)[:, None]) @ inverse(design.T @ design)
        influence = influence / np.maximum(np.abs(influence).max(axis=0), 1e-300)  # so that its cube has a value
    acceleration = (influence**3).sum(axis=0) / (6 * np.maximum((influence**2).sum(axis=0), 1.0) ** 1.5)
    if not np.isfinite(acceleration).all():
        raise ValueError("the influence of single rows is beyond what a float holds")
    below = (draws < estimate.theta).mean(axis=0) + 0.5 * (draws == estimate.theta).mean(axis=0)
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))

    def ends(level: float) -> FloatArray:
        shifted = bias + stats.norm.ppf([[0.5 - level / 2], [0.5 + level / 2]])  # (2, p)
        share = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
        return np.array(
            [np.quantile(draw, pair, method="weibull") for draw, pair in zip(draws.T, share.T, strict=True)]
        )

    return ends


def _named(kind: str, estimate: Estimate) -> str:
    missed = estimate.resamples - len(estimate.draws)
    left_out = f", {missed} left out that reached no minimum" if missed else ""
    return f"{kind} bootstrap, {estimate.resamples} resamples of rows{left_out}"

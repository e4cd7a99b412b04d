"""How sure an estimate is: each kind of interval is used only where it keeps its level.

Rows of one model are not independent, so with models given the cluster jackknife CR3 with t(G - 1) is used. Independent
rows: HC3 for least squares on a linear law, the Delta method for least squares on any other, and the percentile
bootstrap for Huber's loss, whose sandwich undercovers when the threshold is far below the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from kbitlib.laws.clusters import cr3_covariance
from kbitlib.laws.diagnostics import determined
from kbitlib.laws.estimate import CONVERGED, Loss, minimise
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

RESAMPLES = 400  # enough for a standard error within 4 %, and ends of the interval within about a tenth of one
_CHUNK = 100


@dataclass(frozen=True)
class Uncertainty:
    """Covariance (p, p) of the parameters as estimated (positive ones by logarithms), degrees of freedom, and draws.

    ``refusal`` says why no interval can be given, where that is so; the covariance is then NaN.
    """

    kind: str
    covariance: FloatArray
    freedom: float
    draws: FloatArray | None = None  # (resamples, p)
    refusal: str = ""

    def interval(self, theta: FloatArray, level: float) -> FloatArray:
        """Low and high end (p, 2) of each parameter, as estimated."""
        if self.draws is not None:
            return np.quantile(self.draws, [0.5 - level / 2, 0.5 + level / 2], axis=0).T
        width = stats.t.ppf(0.5 + level / 2, self.freedom) * np.sqrt(np.diag(self.covariance))
        return np.column_stack([theta - width, theta + width])


def _unknown(parameters: int, refusal: str) -> Uncertainty:
    return Uncertainty("none", np.full((parameters, parameters), np.nan), np.nan, refusal=refusal)


def uncertainty(
    surface: Surface, response: FloatArray, loss: Loss, theta: FloatArray, groups: pd.Series | None
) -> Uncertainty:
    """The uncertainty of a minimum ``theta`` (p,) by the kind of interval that holds for this loss and design."""
    if surface.rows <= len(theta):
        return _unknown(len(theta), "as many parameters as rows")
    least_squares = not np.isfinite(loss.threshold)
    if groups is not None:
        if surface.form.linear and least_squares and loss.on_logs:
            return _cluster_closed_form(surface, response, theta, groups)
        return _cluster_jackknife(surface, response, loss, theta, groups)
    if not least_squares:
        return _percentile(surface, response, loss, theta)
    if surface.form.linear and loss.on_logs:
        return _hc3(surface, response, theta)
    return _delta(surface, response, loss, theta)


def ordinary_least_squares(surface: Surface, response: FloatArray) -> Any:
    """statsmodels' fit of a linear law in logarithms, with HC3 standard errors and t intervals."""
    _, jacobian = surface.log_mean_and_jacobian(np.zeros((1, len(surface.names))))
    design = pd.DataFrame(jacobian[0].T, columns=surface.names)
    return sm.OLS(np.log(response), design).fit(cov_type="HC3", use_t=True)


def _hc3(surface: Surface, response: FloatArray, theta: FloatArray) -> Uncertainty:
    ols = ordinary_least_squares(surface, response)
    if np.max(ols.get_influence().hat_matrix_diag) > 1 - 1e-9:
        return _unknown(len(theta), "a parameter hangs on one row alone")
    return Uncertainty("HC3, t", np.asarray(ols.cov_params()), ols.df_resid)


def _delta(surface: Surface, response: FloatArray, loss: Loss, theta: FloatArray) -> Uncertainty:
    log_mean, jacobian = surface.log_mean_and_jacobian(theta[None])
    residual = log_mean[0] - np.log(response) if loss.on_logs else np.exp(log_mean[0]) - response
    slopes = jacobian[0] if loss.on_logs else jacobian[0] * np.exp(log_mean[0])
    freedom = surface.rows - len(theta)
    return Uncertainty("Delta method, t", _inverse(slopes @ slopes.T) * (residual**2).sum() / freedom, freedom)


def _inverse(matrix: FloatArray) -> FloatArray:
    """The inverse, scaled by the diagonal first: parameters have very different units."""
    scale = 1 / np.sqrt(np.diag(matrix))
    return np.asarray(np.linalg.pinv(matrix * np.outer(scale, scale)) * np.outer(scale, scale))


def _percentile(surface: Surface, response: FloatArray, loss: Loss, theta: FloatArray) -> Uncertainty:
    """Resample rows, refit from the estimate; the resampling is seeded, so a fit is the same every time."""
    random = np.random.default_rng(0)
    n = surface.rows
    draws = []
    for _ in range(RESAMPLES // _CHUNK):
        weights = random.multinomial(n, np.full(n, 1 / n), size=_CHUNK).astype(np.float64)
        draws.append(minimise(surface, response, loss, np.repeat(theta[None], _CHUNK, axis=0), weights).theta)
    stacked = np.concatenate(draws)
    kind = f"percentile bootstrap, {RESAMPLES} resamples of rows"
    return Uncertainty(kind, np.atleast_2d(np.cov(stacked.T)), np.inf, stacked)


def _cluster_closed_form(surface: Surface, response: FloatArray, theta: FloatArray, groups: pd.Series) -> Uncertainty:
    log_mean, jacobian = surface.log_mean_and_jacobian(theta[None])
    try:
        covariance = cr3_covariance(jacobian[0].T, np.log(response) - log_mean[0], groups)
    except ValueError as refusal:
        return _unknown(len(theta), str(refusal))
    return _cr3(covariance, groups)


def _cluster_jackknife(
    surface: Surface, response: FloatArray, loss: Loss, theta: FloatArray, groups: pd.Series
) -> Uncertainty:
    """Refit without each group: the definition of CR3, which holds for any law and loss."""
    codes, names = pd.factorize(groups)
    if len(names) < 2:
        return _unknown(len(theta), "one group alone")
    weights = (codes[None, :] != np.arange(len(names))[:, None]).astype(np.float64)
    jacobian = surface.log_mean_and_jacobian(theta[None])[1][0]
    for name, kept in zip(names, weights > 0, strict=True):
        if not all(determined(jacobian[:, kept].T)):
            return _unknown(len(theta), f"without {name} the parameters are not identified")
    refits = minimise(surface, response, loss, np.repeat(theta[None], len(names), axis=0), weights)
    if (refits.gradient > CONVERGED).any():
        return _unknown(len(theta), f"without {names[int(refits.gradient.argmax())]} no minimum was reached")
    shifts = refits.theta - theta
    return _cr3((len(names) - 1) / len(names) * shifts.T @ shifts, groups)


def _cr3(covariance: FloatArray, groups: pd.Series) -> Uncertainty:
    count = groups.nunique()
    return Uncertainty(f"CR3 by {groups.name} ({count} groups), t", covariance, count - 1)

"""An estimate with all it was found from, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import pandas as pd
from scipy import stats

from kbitlib.laws import bootstrap
from kbitlib.laws.diagnostics import variance_inflation
from kbitlib.laws.estimate import CONVERGED, Loss, minimise
from kbitlib.laws.profile import Profile, linearised, profile
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

_END = stats.norm.ppf(0.975)
_MIDDLE_VARIANCE = (
    0.95 - 2 * _END * stats.norm.pdf(_END) + 0.05 * _END**2
)  # of a standard normal drawn back to the ends


@dataclass(frozen=True)
class Estimate:
    """A minimum ``theta`` (p,) with all it was found from; ``groups`` and ``seeds`` (n,) tell rows of one run.

    ``converged`` is whether it is one: where a descent ended on the way, nothing can be said of how sure it is.
    """

    surface: Surface
    response: FloatArray
    loss: Loss
    theta: FloatArray
    groups: pd.Series | None = None
    seeds: pd.Series | None = None
    resamples: int = bootstrap.RESAMPLES
    converged: bool = True

    @property
    def least_squares(self) -> bool:
        """Whether the loss is a sum of squares: Huber's is one where no residual is beyond its threshold."""
        return not (np.isfinite(self.loss.threshold) and np.abs(self.linearised[1]).max() > self.loss.threshold)

    @cached_property
    def linearised(self) -> tuple[FloatArray, FloatArray]:
        """The design (n, p) and the residuals (n,) at the minimum, on the loss's scale."""
        residual, slopes = linearised(self.surface, self.response, self.loss.on_logs, self.theta[None])
        return slopes[0].T, residual[0]

    @cached_property
    def bounded(self) -> bool:
        """Whether the squares of the derivatives are within what a float holds."""
        design = self.linearised[0]
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(design.T @ design).all())

    @cached_property
    def draws(self) -> FloatArray:
        """Minima (resamples, p) of tables whose rows were drawn from these; those that reached none are left out."""
        made = bootstrap.draws(self.surface, self.response, self.loss, self.theta, self.resamples)
        return np.asarray(made[~np.isnan(made).any(axis=1)])

    @cached_property
    def group_draws(self) -> FloatArray:
        """Minima (resamples, p) of tables of groups drawn with replacement; those that reached none are left out."""
        assert self.groups is not None
        codes, names = pd.factorize(self.groups)
        random = np.random.default_rng(0)
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=self.resamples)
        reached = []
        for part in np.array_split(drawn[:, codes].astype(np.float64), -(-self.resamples // 100)):
            starts = np.repeat(self.theta[None], len(part), axis=0)
            minimum = minimise(self.surface, self.response, self.loss, starts, part)
            reached.append(minimum.theta[minimum.gradient <= CONVERGED])
        return np.concatenate(reached)

    @cached_property
    def profiles(self) -> Callable[[float], Profile]:
        """The profile-F intervals by level, each made once."""
        return cache(partial(profile, self.surface, self.response, self.loss.on_logs, self.theta))

    @cached_property
    def inflation(self) -> float:
        """The largest variance inflation of a law's columns; 1 for a linear law, whose intervals do not mind it."""
        if self.surface.form.linear:
            return 1.0
        return float(np.nan_to_num(variance_inflation(self.surface.log_columns()).max(), nan=1.0))


@dataclass(frozen=True)
class Uncertainty:
    """Covariance (p, p) of the parameters as estimated (positive ones by logarithms), degrees of freedom, and draws.

    ``ends(level)`` gives the low and high end (p, 2) of each parameter, ``kind`` names the interval and ``reason`` says
    why it is this one. ``refusal`` says why no interval can be given, where that is so; all is then NaN.
    """

    kind: str
    covariance: FloatArray
    freedom: float
    ends: Callable[[float], FloatArray]
    draws: FloatArray | None = None  # (resamples, p)
    reason: str = ""
    refusal: str = ""


def by_t(
    kind: str, estimate: Estimate, covariance: FloatArray, freedom: float, each: FloatArray | None = None
) -> Uncertainty:
    """t intervals; ``each`` (p,) gives every parameter degrees of freedom of its own."""
    spread = np.sqrt(np.diag(covariance))

    def ends(level: float) -> FloatArray:
        width = stats.t.ppf(0.5 + level / 2, freedom if each is None else each) * spread
        return np.column_stack([estimate.theta - width, estimate.theta + width])

    return Uncertainty(kind, covariance, freedom, ends)


def by_quantiles(kind: str, draws: FloatArray) -> Uncertainty:
    """Percentile intervals: ends are the (R + 1) alpha-th of R draws (Davison & Hinkley 1997, section 5.2.1)."""

    def ends(level: float) -> FloatArray:
        return np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0, method="weibull").T

    return Uncertainty(kind, covariance_of(draws), np.inf, ends, draws)


def covariance_of(draws: FloatArray) -> FloatArray:
    """The covariance (p, p) of draws (resamples, p), each parameter's drawn back to the middle 95 % of its own.

    A few resamples of a hundred run off along a flat direction; plain moments would be made of these alone. What normal
    draws lose by it is given back. A variance beyond what a float holds is infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.quantile(draws, [0.025, 0.975], axis=0)
        covariance = np.atleast_2d(np.cov(np.clip(draws, *ends).T)) / _MIDDLE_VARIANCE
    variance = np.diag(covariance)
    np.fill_diagonal(covariance, np.where(np.isnan(variance), np.inf, variance))
    return covariance

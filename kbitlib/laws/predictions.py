"""What a law expects of rows that it has not seen, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd
from scipy import stats

from kbitlib.laws.tables import FloatArray


@dataclass(frozen=True)
class Scatter:
    """How single rows lie about the law, on the loss's scale: of what variance, known by how many degrees of freedom.

    With models given, ``covariance`` (p, p) of the parameters is the one that fits that variance: that of a new model
    of the family; None takes that of the fit.
    """

    variance: float
    freedom: float
    covariance: FloatArray | None = None


@dataclass(frozen=True)
class Prediction:
    """Predictions with statsmodels' manners; all in the unit of the response, one entry a row of the table.

    Intervals are made where the loss was: of logarithms, then taken back. ``conf_int(obs=True)`` is for a new row (with
    models given, a new model of the family), without ``obs`` for the law itself. With models given the first rests on
    the variance between models, the second on the fit's own covariance: with few models either may be the wider.
    """

    center: FloatArray  # (m,) on the loss's scale, as are the next two
    deviation: FloatArray
    deviation_obs: FloatArray
    freedom: float
    freedom_obs: float
    draws: FloatArray | None  # (resamples, m)
    on_logs: bool
    irreducible: float
    index: pd.Index

    @property
    def predicted_mean(self) -> pd.Series:
        return self._series(self._back(self.center), "mean")

    @property
    def se_mean(self) -> pd.Series:
        return self._series(self.deviation * self._slope, "mean_se")

    @property
    def se_obs(self) -> pd.Series:
        return self._series(self.deviation_obs * self._slope, "obs_se")

    def conf_int(self, alpha: float = 0.05, *, obs: bool = False) -> pd.DataFrame:
        """Low and high end, columns 0 and 1, of level 1 - alpha; NaN where no interval can be given.

        ValueError for an alpha that is not between 0 and 1.
        """
        level = level_of(alpha)
        if self.draws is not None and not obs:
            ends = np.quantile(self.draws, [0.5 - level / 2, 0.5 + level / 2], axis=0, method="weibull")
        else:
            deviation, freedom = (self.deviation_obs, self.freedom_obs) if obs else (self.deviation, self.freedom)
            width = stats.t.ppf(0.5 + level / 2, freedom) * deviation
            ends = np.stack([self.center - width, self.center + width])
        return pd.DataFrame(self._back(ends).T, index=self.index)

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """The mean, its standard error and both intervals, under statsmodels' names."""
        mean, obs = self.conf_int(alpha), self.conf_int(alpha, obs=True)
        columns = {"mean_ci_lower": mean[0], "mean_ci_upper": mean[1], "obs_ci_lower": obs[0], "obs_ci_upper": obs[1]}
        return pd.DataFrame({"mean": self.predicted_mean, "mean_se": self.se_mean, **columns})

    @property
    def _slope(self) -> FloatArray:
        return np.exp(self.center) if self.on_logs else np.ones_like(self.center)

    def _back(self, values: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):  # the end of a very wide interval
            return (np.exp(values) if self.on_logs else values) + self.irreducible

    def _series(self, values: FloatArray, name: str) -> pd.Series:
        return pd.Series(values, index=self.index, name=name)


def level_of(alpha: float) -> float:
    """The level 1 - alpha of an interval; ValueError for an alpha that is no number between 0 and 1."""
    if not (isinstance(alpha, Real) and 0 < alpha < 1):
        raise ValueError(f"alpha is {alpha!r}; a number between 0 and 1 is allowed")
    return 1 - float(alpha)


def deviations(slopes: FloatArray, covariance: FloatArray) -> FloatArray:
    """The Delta method: standard deviations (m,) of quantities with derivatives ``slopes`` (m, p)."""
    return np.asarray(np.sqrt(np.maximum(np.einsum("mp,pq,mq->m", slopes, covariance, slopes), 0.0)))

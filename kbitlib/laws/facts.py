"""A fit that was written as JSON, made a law again: what it predicts, how sure it is, and how far it extrapolates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kbitlib.laws.forms import FORMS, Form
from kbitlib.laws.predictions import Prediction, deviations
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray, Levels, is_labels

NEEDED = ("law", "theta", "covariance", "df", "obs_sd", "df_obs", "covariance_obs", "levels", "range", "columns")


@dataclass(frozen=True)
class FittedLaw:
    """A law with its estimates ``theta`` (p,), positive ones by logarithm, as ``LawResults.facts`` has them.

    ``covariance`` and ``covariance_obs`` (p, p) are of the estimates for the law itself and for a new run of standard
    deviation ``obs_sd``, NaN where no interval could be given. ``levels`` are the k, or names of formats, with
    parameters of their own; ``range`` holds the least and greatest value of each column among the rows fitted.
    """

    form: Form
    theta: FloatArray
    covariance: FloatArray
    freedom: float
    obs_sd: float
    freedom_obs: float
    covariance_obs: FloatArray
    on_logs: bool
    irreducible: float
    levels: Levels
    range: Mapping[str, tuple[float, float]]
    columns: Mapping[str, str]
    warnings: tuple[str, ...]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> FittedLaw:
        """The law of ``results.facts()`` or ``kbit fit --json``; ValueError for a missing key or an unknown law."""
        for key in NEEDED:
            if key not in facts:
                raise ValueError(f"the fit has no {key!r}; a file that `kbit fit --json` wrote is allowed")
        if facts["law"] not in FORMS:
            raise ValueError(f"law {facts['law']!r} is unknown; {', '.join(FORMS)} are allowed")
        return cls(
            form=FORMS[facts["law"]].for_columns(facts["range"]),
            theta=np.array(facts["theta"], dtype=np.float64),
            covariance=np.array(facts["covariance"], dtype=np.float64),  # None is NaN
            freedom=_freedom(facts["df"]),
            obs_sd=float(np.array(facts["obs_sd"], dtype=np.float64)),
            freedom_obs=_freedom(facts["df_obs"]),
            covariance_obs=np.array(facts["covariance_obs"], dtype=np.float64),
            on_logs=facts.get("loss") != "squared",
            irreducible=float(facts.get("irreducible", 0.0)),
            levels=np.array(facts["levels"], dtype=None if facts["levels"] else np.float64),
            range={name: (ends[0], ends[1]) for name, ends in facts["range"].items()},
            columns=facts["columns"],
            warnings=tuple(facts.get("warnings", ())),
        )

    @property
    def by_name(self) -> bool:
        """Whether the levels are names of formats rather than numbers of bits."""
        return is_labels(self.levels)

    @property
    def counted(self) -> list[str]:
        """The columns that the law computes with: not a k that only names levels."""
        return [name for name in self.form.columns if name != "k" or not self.form.names_levels]

    def mean(self, table: pd.DataFrame | Mapping[str, Any]) -> FloatArray:
        """The response expected for each row, (n,)."""
        return np.exp(self._surface(table).log_mean(self.theta)) + self.irreducible

    def get_prediction(self, table: pd.DataFrame) -> Prediction:
        """What is expected for each row, as ``LawResults.get_prediction`` has it; ValueError for a level not fitted."""
        center, slopes = self._at(table)
        return Prediction(
            center=center,
            deviation=deviations(slopes, self.covariance),
            deviation_obs=np.hypot(deviations(slopes, self.covariance_obs), self.obs_sd),
            freedom=self.freedom,
            freedom_obs=self.freedom_obs,
            draws=None,
            on_logs=self.on_logs,
            irreducible=self.irreducible,
            index=table.index,
        )

    def above_first(self, table: pd.DataFrame, level: float) -> pd.DataFrame:
        """How far the law has each row above the first: ``gap, gap_low, gap_high``, and the ``probability`` that it is.

        Both ends share one fit, whose errors partly cancel, and so does what is common to all formats of one model; the
        scatter of single runs is not in it.
        """
        center, slopes = self._at(table)
        mean = np.exp(center) if self.on_logs else center
        natural = slopes * mean[:, None] if self.on_logs else slopes
        error = deviations(natural - natural[:1], self.covariance)
        gap, width = mean - mean[0], stats.t.ppf(0.5 + level / 2, self.freedom) * error
        score = np.divide(gap, error, out=np.full_like(gap, np.nan), where=error > 0)
        columns = {"gap": gap, "gap_low": gap - width, "gap_high": gap + width}
        return pd.DataFrame(columns | {"probability": stats.t.cdf(score, self.freedom)}, index=table.index)

    def beyond(self, values: FloatArray, name: str) -> FloatArray:
        """How many times values of a column lie above the greatest that was fitted, or below the least; 1 between."""
        low, high = self.range[name]
        return np.maximum(1.0, np.maximum(values / high, low / values))

    def _surface(self, table: pd.DataFrame | Mapping[str, Any]) -> Surface:
        return Surface(self.form, {name: np.asarray(table[name]) for name in self.form.columns}, self.levels)

    def _at(self, table: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
        """What is expected (n,) and its derivatives (n, p), on the scale of the loss that was minimised."""
        log_mean, jacobian = self._surface(table).log_mean_and_jacobian(self.theta[None])
        if self.on_logs:
            return log_mean[0], jacobian[0].T
        mean = np.exp(log_mean[0])
        return mean, jacobian[0].T * mean[:, None]


def _freedom(value: float | None) -> float:
    return np.inf if value is None else float(value)

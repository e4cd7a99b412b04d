"""A fit that was written as JSON, made a law again: what it predicts, how sure it is, and how far it extrapolates."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kbitlib.laws.forms import FORMS, Form
from kbitlib.laws.predictions import Prediction, deviations
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray, Levels, is_labels

NEEDED = ("law", "theta", "covariance", "df", "obs_sd", "df_obs", "covariance_obs", "levels", "range", "columns")
USUAL = {"loss": "log-squared", "irreducible": 0.0, "converged": True, "warnings": []}


@dataclass(frozen=True)
class FittedLaw:
    """A law with its estimates ``theta`` (p,), positive ones by logarithm, as ``LawResults.facts`` has them.

    ``covariance`` and ``covariance_obs`` (p, p) are of the estimates for the law itself and for a new run of standard
    deviation ``obs_sd``, NaN where no interval could be given or the fit did not converge. ``levels`` are the k, or
    names of formats, with parameters of their own; ``range`` holds the least and greatest value of each column among
    the rows fitted.
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
    converged: bool
    warnings: tuple[str, ...]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> FittedLaw:
        """The law of ``results.facts()`` or ``kbit fit --json``; ValueError that names the key for what is no fit."""
        facts = _complete(facts)
        form = FORMS[facts["law"]].for_columns(facts["range"])
        levels = _levels(form, facts["levels"])
        sizes = [len(levels) if one.by_k else 1 for one in form.parameters]
        p = sum(sizes)
        theta = _numbers("theta", facts["theta"], (p,))
        if (theta[np.repeat([one.offset for one in form.parameters], sizes)] < 0).any():
            raise _refusal("theta", facts["theta"], "no negative E")
        covariance = _covariance("covariance", facts["covariance"], p)
        sure = 1.0 if facts["converged"] and np.isfinite(covariance).all() else np.nan
        return cls(
            form=form,
            theta=theta,
            covariance=covariance * sure,
            freedom=_freedom("df", facts["df"]),
            obs_sd=float(_numbers("obs_sd", facts["obs_sd"], (), least=0.0, missing=True)),
            freedom_obs=_freedom("df_obs", facts["df_obs"]),
            covariance_obs=_covariance("covariance_obs", facts["covariance_obs"], p) * sure,
            on_logs=facts["loss"] != "squared",
            irreducible=float(_numbers("irreducible", facts["irreducible"], (), least=0.0)),
            levels=levels,
            range=_ranges(form, is_labels(levels), facts["range"]),
            columns=facts["columns"],
            converged=facts["converged"],
            warnings=tuple(facts["warnings"]),
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


# --- what a file may hold ---


def _complete(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with what may be left out; ValueError for a missing key, or a value that is not of its kind."""
    if not isinstance(facts, Mapping):
        raise ValueError(
            f"a {type(facts).__name__} is no fit; what its facts() gives or `kbit fit --json` wrote is allowed"
        )
    for key in NEEDED:
        if key not in facts:
            raise ValueError(f"the fit has no {key!r}; a file that `kbit fit --json` wrote is allowed")
    facts = USUAL | dict(facts)
    if not isinstance(facts["law"], str) or facts["law"] not in FORMS:
        raise ValueError(f"law {reprlib.repr(facts['law'])} is unknown; {', '.join(FORMS)} are allowed")
    names = isinstance(facts["columns"], Mapping) and all(isinstance(name, str) for name in facts["columns"].values())
    words = isinstance(facts["warnings"], list | tuple) and all(isinstance(one, str) for one in facts["warnings"])
    for key, right, allowed in (
        ("range", isinstance(facts["range"], Mapping), "the least and greatest value of each column"),
        ("columns", names, "names of columns"),
        ("loss", facts["loss"] in ("huber", "log-squared", "squared"), "huber, log-squared or squared"),
        ("converged", isinstance(facts["converged"], bool), "true or false"),
        ("warnings", words, "a list of sentences"),
    ):
        if not right:
            raise _refusal(key, facts[key], allowed)
    return facts


def _refusal(key: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"the fit's {key!r} is {reprlib.repr(value)}; {allowed} is allowed")


def _numbers(
    key: str, value: Any, shape: tuple[int, ...], *, least: float = -sys.float_info.max, missing: bool = False
) -> FloatArray:
    """Finite numbers of that shape, none below ``least``; with ``missing``, None is NaN."""
    given = np.array(value, dtype=object)
    present = [one for one in given.flat if not (missing and one is None)]
    numeric = all(isinstance(one, Real) and not isinstance(one, bool) for one in present)
    if given.shape != shape or not numeric or not all(least <= one <= sys.float_info.max for one in present):
        many = f"{' x '.join(map(str, shape))} finite numbers" if shape else "a finite number"
        bound = "" if least < 0 else " of 0 or more" if least == 0 else " above 0"
        raise _refusal(key, value, f"{many}{bound}{' or null' * missing}")
    return given.astype(np.float64)


def _covariance(key: str, value: Any, p: int) -> FloatArray:
    """A covariance (p, p); NaN where a variance is negative, as rounding makes it where the estimates are not fixed."""
    covariance = _numbers(key, value, (p, p), missing=True)
    return covariance * (np.nan if (np.diag(covariance) < 0).any() else 1.0)


def _freedom(key: str, value: Any) -> float:
    return np.inf if value is None else float(_numbers(key, value, (), least=0.0))


def _levels(form: Form, value: Any) -> Levels:
    """Numbers of bits or names of formats, each once; none where the law has no parameters by k."""
    if not isinstance(value, list | tuple) or len({str(one) for one in value}) < len(value):
        raise _refusal("levels", value, "a list of numbers of bits, or of names, each once,")
    if value and not form.names_levels:
        raise _refusal("levels", value, f"an empty list, for law {form.name} has none,")
    if value and all(isinstance(one, str) for one in value):
        return np.array(value, dtype=np.str_)
    return _numbers("levels", value, (len(value),), least=sys.float_info.min)


def _ranges(form: Form, labels: bool, value: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The ends of every column; ValueError where one that the law reads has none."""
    if lacking := [name for name in form.columns if name not in value and not (name == "k" and labels)]:
        raise _refusal("range", dict(value), f"one with the least and greatest {lacking[0]}")
    ends = {name: _numbers(f"range of {name}", pair, (2,), least=sys.float_info.min) for name, pair in value.items()}
    if reversed_ends := [name for name, (low, high) in ends.items() if low > high]:
        raise _refusal("range", dict(value), f"the least {reversed_ends[0]} before the greatest")
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

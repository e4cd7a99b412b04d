"""The result of a fit, with statsmodels' manners."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.iolib.summary2 import Summary

from kbitlib.laws.diagnostics import COLLINEAR, ILL_CONDITIONED, condition_number, correlation, determined
from kbitlib.laws.estimate import CONVERGED, Loss, Minimum
from kbitlib.laws.export import facts
from kbitlib.laws.intervals import KINDS, scatter, uncertainty, why_not
from kbitlib.laws.predictions import Prediction, Scatter, deviations, level_of
from kbitlib.laws.profile import flat_directions
from kbitlib.laws.row_intervals import ordinary_least_squares
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray, read_columns
from kbitlib.laws.uncertainty import Estimate, Uncertainty, covariance_of


class LawResults:
    """A fitted law: estimates, their uncertainty, and how far both can be believed.

    ``params``, ``bse``, ``conf_int()``, ``cov_params()``, ``predict(table)``, ``resid``, ``nobs``, ``summary()`` are as
    in statsmodels. ``objective`` is what was minimised; ``gradient_norm`` the largest cosine between residuals and a
    column of the Jacobian, 0 at a minimum; ``converged`` says that it is below 1e-6; ``boundary`` names offsets at 0.
    """

    def __init__(
        self,
        surface: Surface,
        response: pd.Series,
        loss: Loss,
        minimum: Minimum,
        *,
        columns: Mapping[str, str],
        groups: pd.Series | None,
        irreducible: float,
        seeds: pd.Series | None = None,
    ) -> None:
        self.surface = surface
        self.loss = loss
        self.irreducible = irreducible
        self.theta: FloatArray = minimum.theta[0]
        self.objective = float(loss.objective(minimum.value)[0])
        self.gradient_norm = float(minimum.gradient[0])
        self.converged = self.gradient_norm < CONVERGED
        self._response = response
        self._columns = dict(columns)
        self._groups = groups
        repeated = groups is not None and seeds is not None and seeds.groupby(groups.to_numpy()).nunique().max() > 1
        self._seeds = seeds if repeated else None

    @property
    def _observed(self) -> FloatArray:
        return np.asarray(self._response.to_numpy() - self.irreducible)

    # --- the estimates ---

    @property
    def law(self) -> str:
        return self.surface.form.name

    @property
    def formula(self) -> str:
        return self.surface.form.formula

    @property
    def source(self) -> str:
        return self.surface.form.source

    @property
    def nobs(self) -> int:
        return self.surface.rows

    @property
    def df_resid(self) -> int:
        return self.nobs - len(self.theta)

    @property
    def params(self) -> pd.Series:
        """The parameters as they stand in the formula, by name."""
        return pd.Series(self.surface.natural(self.theta), index=self.surface.names, name="params")

    @property
    def boundary(self) -> list[str]:
        at_zero = self.surface.offset & (self.theta == 0)
        return [name for name, held in zip(self.surface.names, at_zero, strict=True) if held]

    # --- their uncertainty ---

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Made when first asked for: bootstrap and jackknife take longer than the fit."""
        return uncertainty(self.estimate)

    @cached_property
    def estimate(self) -> Estimate:
        """The minimum with all it was found from."""
        rows = self._observed, self.loss, self.theta, self._groups, self._seeds
        return Estimate(self.surface, *rows, converged=self.converged)

    @property
    def offered(self) -> dict[str, str]:
        """Every kind of interval, and why it does not hold for this fit; an empty string where it does."""
        return {kind: why_not(self.estimate, kind) for kind in KINDS}

    @property
    def cov_type(self) -> str:
        return self.uncertainty.kind

    @property
    def cov_reason(self) -> str:
        """Why intervals are of this kind."""
        return self.uncertainty.reason

    def cov_params(self) -> pd.DataFrame:
        """The covariance of ``params``; NaN where no interval can be given."""
        if self.uncertainty.draws is not None:
            covariance = covariance_of(self.surface.natural(self.uncertainty.draws))
        else:
            slope = np.where(self.surface.positive, self.params, 1.0)  # of a positive parameter by its logarithm
            with np.errstate(over="ignore", invalid="ignore"):
                covariance = self.uncertainty.covariance * np.outer(slope, slope)
        return pd.DataFrame(covariance, index=self.surface.names, columns=self.surface.names)

    @property
    def bse(self) -> pd.Series:
        """Standard errors of ``params``."""
        return pd.Series(np.sqrt(np.diag(self.cov_params())), index=self.surface.names, name="bse")

    def conf_int(self, alpha: float = 0.05, kind: str | None = None) -> pd.DataFrame:
        """Intervals of level 1 - alpha, columns 0 and 1; made on the log scale if positive, cut at 0 if offset.

        ``kind`` is one of those ``offered``; by default the one that ``cov_type`` names. The interval of a parameter on
        its boundary is one-sided: from 0 to where a one-sided interval of that level ends. ValueError for a kind that
        does not hold here, and an alpha that is not between 0 and 1.
        """
        sure = self.uncertainty if kind is None else uncertainty(self.estimate, kind)
        ends = sure.ends(level_of(alpha))
        held = np.isin(self.surface.names, self.boundary)
        if held.any():
            ends = np.where(held[:, None], sure.ends(max(1 - 2 * alpha, 0.0)), ends)
            ends[held, 0] = np.minimum(ends[held, 0], 0.0)
            ends[held & (ends[:, 1] <= 0)] = (
                np.nan
            )  # every refit lies on the boundary too: that says nothing of a bound
        ends = np.where(self.surface.offset[:, None], np.maximum(ends, 0.0), ends)
        return pd.DataFrame(self.surface.natural(ends.T).T, index=self.surface.names)

    def flat_directions(self) -> list[str]:
        """A sentence for each parameter that the 95 % profile does not bound; ValueError where profile-F is refused."""
        if refusal := why_not(self.estimate, "profile-f"):
            raise ValueError(f"no profile holds here: {refusal}")
        return flat_directions(self.surface, self.theta, self.estimate.profiles(0.95))

    def correlation(self) -> pd.DataFrame:
        """The correlation of the estimates, of positive ones by their logarithms."""
        names = self.surface.names
        return correlation(pd.DataFrame(self.uncertainty.covariance, index=names, columns=names))

    @property
    def condition_number(self) -> float:
        """Of the Jacobian at the solution, columns scaled to length 1."""
        return condition_number(self._jacobian().T)

    @property
    def identified(self) -> pd.Series:
        """For each parameter: whether the rows determine it at the solution."""
        return pd.Series(determined(self._jacobian().T), index=self.surface.names, name="identified")

    def _jacobian(self) -> FloatArray:
        slopes = np.asarray(self.surface.log_mean_and_jacobian(self.theta[None])[1][0])
        return slopes / np.maximum(np.abs(slopes).max(axis=1, keepdims=True), 1e-300)  # squares are within a float

    @cached_property
    def ols(self) -> Any:
        """statsmodels' own result, for a linear law fitted by least squares on logarithms; None for any other."""
        if self.surface.form.linear and self.loss.name == "log-squared":
            return ordinary_least_squares(self.surface, self._observed)
        return None

    # --- what it predicts ---

    @property
    def fittedvalues(self) -> pd.Series:
        fitted = np.exp(self.surface.log_mean(self.theta)) + self.irreducible
        return pd.Series(fitted, index=self._response.index, name="fittedvalues")

    @property
    def resid(self) -> pd.Series:
        """Observed minus fitted: of the logarithms where the loss is on logarithms, else of the response itself."""
        if self.loss.on_logs:
            observed, fitted = np.log(self._response - self.irreducible), np.log(self.fittedvalues - self.irreducible)
        else:
            observed, fitted = self._response, self.fittedvalues
        return pd.Series(observed - fitted, name="resid")

    def predict(self, table: pd.DataFrame) -> pd.Series:
        """The response expected for each row of ``table``; ValueError for a bad column or a k that was not fitted."""
        expected = np.exp(self._bound(table).log_mean(self.theta)) + self.irreducible
        return pd.Series(expected, index=table.index, name=self.surface.form.response)

    def get_prediction(self, table: pd.DataFrame) -> Prediction:
        """What is expected for each row of ``table``, with the interval of the law and that of a new row.

        Where rows are grouped, a new row is one of a new model of the family. ValueError as in ``predict``.
        """
        surface, sure, scatter = self._bound(table), self.uncertainty, self.scatter
        log_mean, jacobian = surface.log_mean_and_jacobian(self.theta[None])
        scale = np.ones_like(log_mean[0]) if self.loss.on_logs else np.exp(log_mean[0])
        slopes = jacobian[0].T * scale[:, None]
        draws = None if sure.draws is None else surface.log_mean(sure.draws)
        of_new = sure.covariance if scatter.covariance is None else scatter.covariance
        return Prediction(
            center=log_mean[0] if self.loss.on_logs else scale,
            deviation=deviations(slopes, sure.covariance),
            deviation_obs=np.hypot(deviations(slopes, of_new), np.sqrt(scatter.variance)),
            freedom=sure.freedom,
            freedom_obs=scatter.freedom,
            draws=draws if draws is None or self.loss.on_logs else np.exp(draws),
            on_logs=self.loss.on_logs,
            irreducible=self.irreducible,
            index=table.index,
        )

    @cached_property
    def scatter(self) -> Scatter:
        """How single rows, or new models, lie about the law."""
        return scatter(self.estimate)

    def _bound(self, table: pd.DataFrame) -> Surface:
        if table.empty:
            raise ValueError("the table is empty; at least one row is needed")
        form = self.surface.form
        return Surface(form, read_columns(table, form.columns, self._columns), self.surface.levels)

    # --- in words ---

    @property
    def warnings(self) -> list[str]:
        """One sentence for everything that limits what this fit can say."""
        ended = f"no minimum was reached: the gradient's cosine is {self.gradient_norm:.1e}, above {CONVERGED:.0e}"
        said = [] if self.converged else [ended]
        said += [f"{name} lies on its boundary 0: {self._beyond(name)}" for name in self.boundary]
        if self.uncertainty.refusal:
            said.append(f"no interval can be given: {self.uncertainty.refusal}")
        elif self.estimate.inflation > COLLINEAR:
            said += [f"{self.cov_reason}: a standard error says little", *self.flat_directions()]
        if self._groups is None and self.models < self.nobs:
            said.append(
                f"{self.nobs} rows are of {self.models} models that differ in bits alone, so they are not independent: "
                "name the column that tells models apart (groups)"
            )
        if self._groups is not None and self._groups.nunique() < 5:
            said.append(f"{self._groups.nunique()} groups alone ({self._groups.name}): intervals are wide and rough")
        if self.condition_number > ILL_CONDITIONED:
            pair = _strongest_pair(self.correlation())
            said.append(f"condition number {self.condition_number:.3g}: estimates hang together{pair}")
        return said

    def facts(self) -> dict[str, Any]:
        """Everything that the fit found, as JSON can hold it: enough to predict without the rows; see ``export``."""
        return facts(self)

    @property
    def range(self) -> dict[str, list[float]]:
        """The least and the greatest value of each column among the rows fitted."""
        columns = {name: np.asarray(getattr(self.surface._x, name)) for name in self.surface.form.columns}
        return {name: [x.min().item(), x.max().item()] for name, x in columns.items() if x.dtype.kind == "f"}

    @property
    def models(self) -> int:
        """How many models the rows are of, at least: rows that differ in bits alone are of one."""
        x, columns = self.surface._x, self.surface.form.columns
        trained = [getattr(x, name) for name in ("params", "tokens", "flops") if name in columns]
        by_bits = {"k", "k_post", "block", "gaussian_mse"} & set(columns)
        return len(np.unique(np.column_stack(trained), axis=0)) if trained and by_bits else self.nobs

    def _beyond(self, name: str) -> str:
        known = np.isfinite(self.conf_int()[1].to_numpy()[self.surface.names.index(name)])
        return "its interval is one-sided" if known else "nothing here says how far above it may lie"

    def summary(self) -> Summary:
        """A table in the form of statsmodels', with what it rests on and its warnings."""
        summary = Summary()
        summary.add_title(f"{self.law}: {self.formula}")
        summary.add_dict(
            {
                "Loss:": self.loss.name,
                "Objective:": f"{self.objective:.6g}",
                "No. Observations:": str(self.nobs),
                "Df Residuals:": str(self.df_resid),
                "Converged:": str(self.converged),
                "Gradient:": f"{self.gradient_norm:.1e}",
                "Covariance:": self.cov_type,
                "Condition No.:": f"{self.condition_number:.3g}",
            }
        )
        ends = self.conf_int()
        columns = {"Coef.": self.params, "Std.Err.": self.bse, "[0.025": ends[0], "0.975]": ends[1]}
        summary.add_df(pd.DataFrame(columns).map("{:.5g}".format))
        why = f": {self.cov_reason}" if self.cov_reason else ""
        for sentence in (f"Source: {self.source}", f"Intervals: {self.cov_type}{why}", *self.warnings):
            summary.add_text(sentence)
        return summary


def _strongest_pair(correlation: pd.DataFrame) -> str:
    off = correlation.abs().to_numpy(copy=True)
    np.fill_diagonal(off, np.nan)
    if np.isnan(off).all():
        return ""
    i, j = divmod(int(np.nanargmax(off)), len(off))
    names = [str(name) for name in correlation.index]
    return f", most of all {names[i]} and {names[j]} (correlation {off[i, j]:.4f} in size)"

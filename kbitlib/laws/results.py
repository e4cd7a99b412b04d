"""The result of a fit, with statsmodels' manners."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.iolib.summary2 import Summary

from kbitlib.laws.diagnostics import (
    COLLINEAR,
    ILL_CONDITIONED,
    condition_number,
    correlation,
    determined,
    variance_inflation,
)
from kbitlib.laws.estimate import CONVERGED, Loss, Minimum
from kbitlib.laws.intervals import Uncertainty, ordinary_least_squares, uncertainty
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray, read_columns


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
        response = self._response.to_numpy() - self.irreducible
        return uncertainty(self.surface, response, self.loss, self.theta, self._groups)

    @property
    def cov_type(self) -> str:
        return self.uncertainty.kind

    def cov_params(self) -> pd.DataFrame:
        """The covariance of ``params``; NaN where no interval can be given."""
        if self.uncertainty.draws is not None:
            covariance = np.atleast_2d(np.cov(self.surface.natural(self.uncertainty.draws).T))
        else:
            slope = np.where(self.surface.positive, self.params, 1.0)  # of a positive parameter by its logarithm
            with np.errstate(over="ignore", invalid="ignore"):
                covariance = self.uncertainty.covariance * np.outer(slope, slope)
        return pd.DataFrame(covariance, index=self.surface.names, columns=self.surface.names)

    @property
    def bse(self) -> pd.Series:
        """Standard errors of ``params``."""
        return pd.Series(np.sqrt(np.diag(self.cov_params())), index=self.surface.names, name="bse")

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Intervals of level 1 - alpha, columns 0 and 1; made on the log scale if positive, cut at 0 if offset."""
        ends = self.uncertainty.interval(self.theta, 1 - alpha)
        ends = np.where(self.surface.offset[:, None], np.maximum(ends, 0.0), ends)
        return pd.DataFrame(self.surface.natural(ends.T).T, index=self.surface.names)

    def correlation(self) -> pd.DataFrame:
        """The correlation of the estimates."""
        return correlation(self.cov_params())

    @property
    def condition_number(self) -> float:
        """Of the Jacobian at the solution, columns scaled to length 1."""
        return condition_number(self._jacobian().T)

    @property
    def identified(self) -> pd.Series:
        """For each parameter: whether the rows determine it at the solution."""
        return pd.Series(determined(self._jacobian().T), index=self.surface.names, name="identified")

    def _jacobian(self) -> FloatArray:
        return np.asarray(self.surface.log_mean_and_jacobian(self.theta[None])[1][0])

    @cached_property
    def ols(self) -> Any:
        """statsmodels' own result, for a linear law fitted by least squares on logarithms; None for any other."""
        if self.surface.form.linear and self.loss.name == "log-squared":
            return ordinary_least_squares(self.surface, self._response.to_numpy() - self.irreducible)
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
        if table.empty:
            raise ValueError("the table is empty; at least one row is needed")
        form = self.surface.form
        surface = Surface(form, read_columns(table, form.columns, self._columns), self.surface.levels)
        expected = np.exp(surface.log_mean(self.theta)) + self.irreducible
        return pd.Series(expected, index=table.index, name=form.response)

    # --- in words ---

    @property
    def warnings(self) -> list[str]:
        """One sentence for everything that limits what this fit can say."""
        said = []
        if not self.converged:
            said.append(
                f"no minimum was reached: the gradient's cosine is {self.gradient_norm:.1e}, above {CONVERGED:.0e}"
            )
        said += [f"{name} lies on its boundary 0: its interval is one-sided" for name in self.boundary]
        if self.uncertainty.refusal:
            said.append(f"no interval can be given: {self.uncertainty.refusal}")
        if self._groups is not None and self._groups.nunique() < 5:
            said.append(f"{self._groups.nunique()} groups alone ({self._groups.name}): intervals are wide and rough")
        inflation = variance_inflation(self.surface.log_columns()).max()
        if inflation > COLLINEAR and not self.surface.form.linear:
            moving = " and ".join(map(str, self.surface.log_columns()))
            said.append(f"{moving} nearly move together (variance inflation {inflation:.3g}): intervals are too narrow")
        if self.condition_number > ILL_CONDITIONED:
            pair = _strongest_pair(self.correlation())
            said.append(f"condition number {self.condition_number:.3g}: estimates hang together{pair}")
        return said

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
        for sentence in (f"Source: {self.source}", *self.warnings):
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

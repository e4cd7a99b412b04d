"""A fit as JSON can hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kbitlib.laws.results import LawResults


def facts(results: LawResults) -> dict[str, Any]:
    """Everything that a fit found, as JSON can hold it (NaN is None): enough to predict without the rows.

    ``theta`` and ``covariance`` are of the parameters as estimated (positive ones by logarithms), ``df`` the degrees
    of freedom of their intervals; ``obs_sd``, ``df_obs`` and ``covariance_obs`` those of a new row (with ``groups``,
    their number, a new model), on the loss's scale; ``range`` holds the least and the greatest value of a column.
    """
    ends, scatter = results.conf_int(), results.scatter
    of_new = results.uncertainty.covariance if scatter.covariance is None else scatter.covariance
    found = {
        "law": results.law,
        "formula": results.formula,
        "source": results.source,
        "n": results.nobs,
        "params": results.params.to_dict(),
        "se": results.bse.to_dict(),
        "ci95": {name: list(pair) for name, pair in zip(ends.index, ends.to_numpy().tolist(), strict=True)},
        "loss": results.loss.name,
        "objective": results.objective,
        "gradient_norm": results.gradient_norm,
        "converged": results.converged,
        "identified": results.identified.to_dict(),
        "boundary": results.boundary,
        "warnings": results.warnings,
        "cov_type": results.cov_type,
        "cov_reason": results.cov_reason,
        "theta": results.theta.tolist(),
        "covariance": results.uncertainty.covariance.tolist(),
        "df": results.uncertainty.freedom,
        "resid_sd": float(np.std(results.resid)),
        "obs_sd": scatter.variance**0.5,
        "df_obs": scatter.freedom,
        "covariance_obs": of_new.tolist(),
        "groups": None if results._groups is None else int(results._groups.nunique()),
        "levels": list(results.surface.levels),
        "range": results.range,
        "columns": results._columns,
        "irreducible": results.irreducible,
    }
    return {name: for_json(value) for name, value in found.items()}


def for_json(value: Any) -> Any:
    """The value with what JSON cannot hold, NaN and infinities, as None."""
    if isinstance(value, dict):
        return {str(name): for_json(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [for_json(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value

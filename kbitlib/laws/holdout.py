"""How well a law predicts a size that it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kbitlib.laws.fit import fit
from kbitlib.laws.tables import column, numbers


def predict_size(
    table: pd.DataFrame, law: str, size: Any, *, by: str = "model", level: float = 0.90, **options: Any
) -> pd.DataFrame:
    """Fit a law to the rows whose column ``by`` is not ``size``, and predict those where it is.

    One row each, indexed as in the table: ``observed, predicted`` and the ends ``low, high`` of the prediction interval
    in the unit of the response, the log residual ``log_error`` (observed minus predicted), and whether the interval
    holds the observation, ``inside`` (NA where no interval can be given). ``options`` go to ``fit``; ValueError as
    there, also where the law is not identified without the size or has not seen one of its k.
    """
    held_out = column(table, by) == size
    results = fit(table[~held_out], law, **options)
    prediction = results.get_prediction(table[held_out]).summary_frame(alpha=1 - level)
    name = own_name(results.surface.form.response, options)
    observed = pd.Series(numbers(table[held_out], name, positive=False), index=prediction.index)
    low, high = prediction["obs_ci_lower"], prediction["obs_ci_upper"]
    with np.errstate(invalid="ignore", divide="ignore"):  # a paired difference may be negative: it has no logarithm
        error = np.log(observed) - np.log(prediction["mean"])
    return pd.DataFrame(
        {
            "observed": observed,
            "predicted": prediction["mean"],
            "low": low,
            "high": high,
            "log_error": error,
            "inside": observed.between(low, high).astype("boolean").mask(low.isna()),
        }
    )


def leave_one_size_out(
    table: pd.DataFrame, law: str = "chinchilla", *, by: str = "model", level: float = 0.90, **options: Any
) -> pd.DataFrame:
    """Fit a law without each size in turn and predict that size.

    One row a value of column ``by``, in order of appearance: ``nobs`` rows held out; of their log residuals (observed
    minus predicted) the root mean square ``rmse_log`` and the mean ``bias_log``; the share ``inside`` their prediction
    intervals; and, where the other sizes cannot predict this one, the ``reason`` beside NaN. ``options`` go to ``fit``;
    ValueError as there, if not even the whole table can be fitted.
    """
    fit(table, law, **options)
    lines = {size: _line(table, law, size, by, level, options) for size in pd.unique(column(table, by))}
    return pd.DataFrame(lines.values(), index=pd.Index(lines.keys(), name=by))


def _line(table: pd.DataFrame, law: str, size: Any, by: str, level: float, options: dict[str, Any]) -> dict[str, Any]:
    nobs = int((table[by] == size).sum())
    try:
        rows = predict_size(table, law, size, by=by, level=level, **options)
    except ValueError as refusal:
        return {"nobs": nobs, "rmse_log": np.nan, "bias_log": np.nan, "inside": np.nan, "reason": str(refusal)}
    return {
        "nobs": nobs,
        "rmse_log": float(np.sqrt((rows["log_error"] ** 2).mean())),
        "bias_log": float(rows["log_error"].mean()),
        "inside": float(rows["inside"].mean()) if rows["inside"].notna().any() else np.nan,
        "reason": "",
    }


def largest_size_out(
    table: pd.DataFrame, law: str = "chinchilla", *, by: str = "model", level: float = 0.90, **options: Any
) -> pd.DataFrame:
    """Predict the largest size from all others: the columns of ``predict_size``, with ``by`` before them.

    The largest has the greatest mean of the law's first column (params, for most). ValueError as in ``predict_size``.
    """
    first = fit(table, law, **options).surface.form.columns[0]
    size = largest_size(table, own_name(first, options), by)
    rows = predict_size(table, law, size, by=by, level=level, **options)
    rows.insert(0, by, size)
    return rows


def largest_size(table: pd.DataFrame, name: str, by: str = "model") -> Any:
    """The value of column ``by`` whose rows have the greatest mean of column ``name``."""
    return pd.Series(numbers(table, name), index=table.index).groupby(column(table, by)).mean().idxmax()


def own_name(standard: str, options: dict[str, Any]) -> str:
    """The table's name of a standard column."""
    return str((options.get("columns") or {}).get(standard, standard))

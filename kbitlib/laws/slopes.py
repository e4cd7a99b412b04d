"""How fast the loss falls with total bits at each k: one regression line a k."""

from __future__ import annotations

import numpy as np
import pandas as pd
import statsmodels.api as sm

from kbitlib.laws.clusters import cluster_robust
from kbitlib.laws.tables import choose, column, numbers


def total_bits_slopes(
    table: pd.DataFrame,
    *,
    method: str | None = "rtn",
    element: str | None = "int",
    block: int | None = 64,
    bits: str = "total_bits",
    level: float = 0.95,
) -> pd.DataFrame:
    """The slope of log loss on log total bits for each k (Dettmers & Zettlemoyer 2022, section 4).

    Ordinary least squares by k; one row a k with ``slope, std err, low, high, nobs, models, covariance``. Where a model
    has several rows (seeds) the interval is CR3 by model with t(models - 1), else HC3 with t(rows - 2). ValueError as
    in ``best_k``, and for a k with fewer than three models.
    """
    rows = choose(table, method=method, element=element, block=block)
    data = pd.DataFrame(
        {
            "model": column(rows, "model").astype(str).to_numpy(),
            "k": numbers(rows, "k"),
            "log_bits": np.log(numbers(rows, bits)),
            "log_loss": np.log(numbers(rows, "loss")),
        }
    )
    levels = np.unique(data["k"].to_numpy(dtype=np.float64))
    lines = [_line(data[data["k"] == k], k, level) for k in levels]
    return pd.DataFrame(lines, index=pd.Index(levels, name="k"))


def _line(part: pd.DataFrame, k: float, level: float) -> dict[str, float | int | str]:
    models = part["model"].nunique()
    if models < 3:
        raise ValueError(f"k = {k:g} has {models} models; at least three are needed for a slope with an interval")
    ols = sm.OLS(part["log_loss"], sm.add_constant(part[["log_bits"]])).fit(cov_type="HC3", use_t=True)
    if models < len(part):
        clustered = cluster_robust(ols, part["model"], level=level)[["std err", "low", "high"]]
        error, low, high = clustered.loc["log_bits"].to_numpy(dtype=np.float64)
        kind = f"CR3 by model, t({models - 1})"
    else:
        error = ols.bse["log_bits"]
        low, high = ols.conf_int(alpha=1 - level).loc["log_bits"]
        kind = f"HC3, t({len(part) - 2})"
    return {
        "slope": float(ols.params["log_bits"]),
        "std err": float(error),
        "low": float(low),
        "high": float(high),
        "nobs": len(part),
        "models": models,
        "covariance": kind,
    }

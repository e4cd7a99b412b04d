"""Cluster-robust covariance for few clusters: the rows of one model are not independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kbitlib.laws.tables import FloatArray


def cr3_covariance(design: FloatArray, residual: FloatArray, groups: Any) -> FloatArray:
    """The CR3 covariance (p, p) of least squares on ``design`` (n, p), clustered by ``groups`` (n,).

    The cluster jackknife (G - 1)/G * sum_g (b_(g) - b)(b_(g) - b)', in closed form (Bell & McCaffrey 2002; MacKinnon,
    Nielsen & Webb 2023, section 2). ValueError for fewer than two groups, or if a coefficient hangs on one group alone.
    """
    codes, names = pd.factorize(np.asarray(groups))
    if len(names) < 2:
        raise ValueError(f"CR3 needs at least two groups; {len(names)} is given")
    bread = np.linalg.pinv(design.T @ design)
    shifts = []
    for code, name in enumerate(names):
        rows = codes == code
        part = design[rows]
        left = np.eye(len(part)) - part @ bread @ part.T
        if np.linalg.eigvalsh(left)[0] < 1e-9:
            raise ValueError(f"a coefficient hangs on group {name} alone, so CR3 has no value")
        shifts.append(bread @ part.T @ np.linalg.solve(left, residual[rows]))
    stacked = np.array(shifts)
    return np.asarray((len(names) - 1) / len(names) * stacked.T @ stacked)


def cluster_robust(results: Any, groups: Any, *, level: float = 0.95) -> pd.DataFrame:
    """Coefficients of a statsmodels OLS fit with CR3 standard errors and t(G - 1) intervals.

    Columns ``coef, std err, t, p, low, high``, one row a coefficient. With as few as six models such intervals keep
    their level where a cluster bootstrap does not. ValueError as in ``cr3_covariance``.
    """
    covariance = cr3_covariance(np.asarray(results.model.exog), np.asarray(results.resid), groups)
    freedom = pd.Series(np.asarray(groups)).nunique() - 1
    error = np.sqrt(np.diag(covariance))
    estimate = np.asarray(results.params)
    width = stats.t.ppf(0.5 + level / 2, freedom) * error
    ratio = np.divide(estimate, error, out=np.full_like(estimate, np.nan), where=error > 0)
    columns = {
        "coef": estimate,
        "std err": error,
        "t": ratio,
        "p": 2 * stats.t.sf(np.abs(ratio), freedom),
        "low": estimate - width,
        "high": estimate + width,
    }
    return pd.DataFrame(columns, index=results.model.exog_names)

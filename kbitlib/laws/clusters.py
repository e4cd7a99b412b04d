"""Few clusters: the rows of one model are not independent, and what varies between models is known by few of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
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


@dataclass(frozen=True)
class Components:
    """Variance of what the rows of a group share and of what each has for itself; ``freedom`` is that of the first.

    ``leak`` is the part of ``within`` that was subtracted to have ``between``, ``spare`` the freedom of ``within``.
    """

    between: float
    within: float
    freedom: float
    leak: float = 0.0
    spare: int = 0


def components(design: FloatArray, residual: FloatArray, groups: Any) -> Components:
    """Variance components of a random intercept by group, from least-squares residuals (n,) on ``design`` (n, p).

    By moments: the mean residuals of groups and the residuals about them have the expectations that the design leaves
    them (Henderson's method 3; Searle, Casella & McCulloch 1992, section 5.5). ``freedom`` is Satterthwaite's: in a
    balanced design, groups less the parameters that tell groups apart. NaN and 0 where the design leaves nothing.
    """
    codes, counts = _codes(groups)
    basis = _basis(design)
    residual = residual - basis @ (basis.T @ residual)
    sums = _sums(basis, codes)
    left = np.eye(len(counts)) - sums / counts[:, None] @ sums.T  # what the design leaves of an intercept, (G, G)
    square = left @ left.T
    about = _basis(basis - (sums / counts[:, None])[codes], scaled=False)  # what differs between groups alone is gone
    means = _sums(residual[:, None], codes)[:, 0] / counts
    own = residual - means[codes]
    own = own - about @ (about.T @ own)
    spare = len(residual) - len(counts) - about.shape[1]
    if spare == 0 or np.trace(square) < 1e-6:
        return Components(np.nan, np.nan, 0.0)
    within = float(own @ own) / spare
    leak = float(np.sum((1 - (sums**2).sum(axis=1) / counts) / counts) / np.trace(square))
    between = float(means @ means / np.trace(square)) - leak * within
    freedom = float(np.trace(square) ** 2 / np.sum(square**2))
    return Components(max(between, 0.0), within, freedom, leak, spare)


def intercept_covariance(design: FloatArray, found: Components, groups: Any) -> FloatArray:
    """The covariance (p, p) of least squares on ``design`` (n, p) when rows have these variance components."""
    between, within = _parts(design, groups)
    return found.between * between + found.within * within


def intercept_freedom(design: FloatArray, found: Components, groups: Any) -> FloatArray:
    """Satterthwaite's degrees of freedom (p,) of each variance in ``intercept_covariance``.

    A parameter that tells groups apart has nearly those of ``found.freedom``, one within groups those of the rows.
    """
    between, within = map(np.diag, _parts(design, groups))
    if found.between == 0:
        return np.full(design.shape[1], float(found.spare))
    of_groups = (found.between + found.leak * found.within) * between
    of_rows = found.within * (within - found.leak * between)
    return np.asarray((of_groups + of_rows) ** 2 / (of_groups**2 / found.freedom + of_rows**2 / found.spare))


def _parts(design: FloatArray, groups: Any) -> tuple[FloatArray, FloatArray]:
    """The covariances (p, p) of least squares for a variance of 1 between groups, and of 1 within them."""
    lengths = _lengths(design)
    scaled = design / lengths
    bread = np.linalg.pinv(scaled.T @ scaled)
    sums = _sums(scaled, _codes(groups)[0])
    units = np.outer(lengths, lengths)
    return bread @ sums.T @ sums @ bread / units, bread / units


def _codes(groups: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The group of each row as a number (n,), and how many rows each has (G,)."""
    codes = pd.factorize(np.asarray(groups))[0]
    return codes, np.bincount(codes)


def _sums(matrix: FloatArray, codes: NDArray[np.intp]) -> FloatArray:
    """The sum over the rows of each group, (G, columns)."""
    sums = np.zeros((codes.max() + 1, matrix.shape[1]))
    np.add.at(sums, codes, matrix)
    return sums


def _lengths(matrix: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(matrix, axis=0)
    return np.where(lengths > 0, lengths, 1.0)


def _basis(matrix: FloatArray, *, scaled: bool = True) -> FloatArray:
    """An orthonormal basis (n, rank) of the columns, by default scaled to length 1 first."""
    left, singular, _ = np.linalg.svd(matrix / _lengths(matrix) if scaled else matrix, full_matrices=False)
    return np.asarray(left[:, singular > 1e-10])

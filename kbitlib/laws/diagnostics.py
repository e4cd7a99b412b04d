"""What a design can tell: rank, condition number, variance inflation, and in words what is identified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kbitlib.laws.tables import FloatArray

RANK_TOLERANCE = 1e-10  # of the largest singular value, columns scaled to length 1
COLLINEAR = 10.0  # variance inflation that is commonly held to be too much (Kutner et al. 2005)
ILL_CONDITIONED = 30.0  # Belsley, Kuh & Welsch 1980: from here on collinearity harms the estimates


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` finds; ``identified`` and ``undetermined`` are linear combinations in words."""

    rank: int
    condition_number: float
    vif: pd.Series
    identified: list[str]
    undetermined: list[str]

    @property
    def full_rank(self) -> bool:
        return self.rank == len(self.vif)


def diagnose(design: pd.DataFrame) -> Diagnosis:
    """Diagnose a design matrix (rows, parameters), whose columns carry the parameters' names.

    ``identified`` are combinations of parameters that the rows determine; along each of ``undetermined`` the parameters
    may move without changing any prediction. Condition number: columns scaled to length 1, not centred (Belsley 1980).
    """
    matrix = design.to_numpy(dtype=np.float64)
    names = [str(name) for name in design.columns]
    row_space, null_space = _row_and_null_space(matrix)
    return Diagnosis(
        rank=len(row_space),
        condition_number=condition_number(matrix),
        vif=variance_inflation(design),
        identified=[_in_words(row, names) for row in _reduced(row_space)],
        undetermined=[_in_words(row, names) for row in _reduced(null_space)],
    )


def condition_number(matrix: FloatArray) -> float:
    """Largest singular value by smallest, columns scaled to length 1; infinite where a combination is undetermined."""
    if matrix.shape[0] < matrix.shape[1]:
        return float("inf")
    singular = np.linalg.svd(_scaled(matrix)[0], compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > RANK_TOLERANCE * singular[0] else float("inf")


def variance_inflation(design: pd.DataFrame) -> pd.Series:
    """1 / (1 - R^2) of each column on all others and a constant: infinite if determined by them, NaN if constant."""
    inflation = {}
    for name in design.columns:
        target = design[name].to_numpy(dtype=np.float64)
        others = design.drop(columns=name).to_numpy(dtype=np.float64)
        others = _scaled(np.column_stack([np.ones(len(target)), others]))[0]
        spread = ((target - target.mean()) ** 2).sum()
        left = target - others @ np.linalg.lstsq(others, target, rcond=RANK_TOLERANCE)[0]
        unexplained = (left**2).sum()
        if spread <= RANK_TOLERANCE**2 * (target**2).sum():
            inflation[name] = np.nan
        else:
            inflation[name] = spread / unexplained if unexplained > RANK_TOLERANCE * spread else np.inf
    return pd.Series(inflation, name="vif")


def correlation(covariance: pd.DataFrame) -> pd.DataFrame:
    """The correlation of estimates from their covariance."""
    sd = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance.div(sd, axis=0).div(sd, axis=1)


def determined(matrix: FloatArray) -> list[bool]:
    """For each column of a design: whether the rows determine its parameter by itself."""
    _, null_space = _row_and_null_space(matrix)
    lengths = _scaled(matrix)[1]
    return [not np.any(np.abs(null_space[:, j] * lengths[j]) > 1e-6) for j in range(matrix.shape[1])]


def rank(matrix: FloatArray) -> int:
    """The number of combinations of parameters that a design (rows, parameters) determines."""
    return len(_row_and_null_space(matrix)[0])


def _scaled(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    lengths = np.linalg.norm(matrix, axis=0)
    lengths = np.where(lengths > 0, lengths, 1.0)
    return matrix / lengths, lengths


def _row_and_null_space(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Bases of the row space and the null space, one vector a row, in the parameters' own units."""
    scaled, lengths = _scaled(matrix)
    wide = matrix.shape[0] < matrix.shape[1]  # only then do the rows leave right singular vectors out
    _, singular, right = np.linalg.svd(scaled, full_matrices=wide)
    rank = int((singular > RANK_TOLERANCE * singular[0]).sum()) if singular.size else 0
    return right[:rank] * lengths, right[rank:] / lengths


def _reduced(basis: FloatArray) -> FloatArray:
    """Reduced row echelon form of a basis: every vector gets one parameter that the others do not contain."""
    rows = basis.copy()
    top = 0
    for j in range(rows.shape[1]):
        if top == len(rows):
            break
        sizes = np.abs(rows[top:, j]) / np.maximum(np.abs(rows[top:]).max(axis=1), 1e-300)
        pivot = top + int(sizes.argmax())
        if sizes.max() < 1e-8:
            continue
        rows[[top, pivot]] = rows[[pivot, top]]
        rows[top] /= rows[top, j]
        others = np.arange(len(rows)) != top
        rows[others] -= np.outer(rows[others, j], rows[top])
        top += 1
    return rows


def _in_words(row: FloatArray, names: Sequence[str]) -> str:
    """``beta + gamma - 2 delta``; entries that are rounding are left out."""
    row = np.where(np.abs(row) < 1e-7 * np.abs(row).max(), 0.0, row)
    words = ""
    for value, name in zip(row, names, strict=True):
        if value == 0:
            continue
        size = f"{abs(value):.4g}"
        factor = "" if size == "1" else f"{size} "
        sign = (" - " if value < 0 else " + ") if words else ("-" if value < 0 else "")
        words += f"{sign}{factor}{name}"
    return words

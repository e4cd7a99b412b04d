"""Rows that a reader should look at before believing a fit; none is ever dropped.

Residuals are those of a robust fit of the same law (Huber's loss, its threshold at 1.345 robust standard deviations),
so that an outlier cannot hide itself or another by pulling the law towards it. What is linear in theory (leverage,
Cook's distance) is taken of the law linearised at that fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.robust.scale import mad

from kbitlib.laws.estimate import Loss, minimise
from kbitlib.laws.results import LawResults
from kbitlib.laws.tables import FloatArray
from kbitlib.laws.uncertainty import Estimate

RESIDUAL = "large studentised residual"
LEVERAGE = "high leverage"
COOK = "extreme Cook's distance"
K_ORDER = "not monotone in k"
SIZE_ORDER = "not monotone in size"
REASONS = (RESIDUAL, LEVERAGE, COOK, K_ORDER, SIZE_ORDER)

_ORDERED = {K_ORDER: ("k", "k_post"), SIZE_ORDER: ("params", "total_bits")}
_REWEIGHTINGS = 5
_EXACT = 1e-12  # a law that holds to rounding: no residual stands out


def flag(results: LawResults) -> pd.DataFrame:
    """Rows that stand out, one line for each row and ``reason`` (of ``REASONS``), the most extreme first.

    Columns ``row`` (its label in the table fitted), ``reason``, ``value`` and the ``limit`` that it exceeds:

    - studentised residual: the quantile of t that one of all rows exceeds in 5 % of samples at most (Bonferroni);
    - leverage: three times its mean, p/n (Velleman & Welsch 1981);
    - Cook's distance: the median of F(p, n - p) (Cook 1977);
    - order: a loss or degradation above that of a row with fewer bits or a smaller model, all else equal, by more than
      the like quantile of all such pairs; of the two rows it is the one that the law fits worse.

    ValueError where there are as many parameters as rows: no row can then stand out.
    """
    n, p = results.nobs, len(results.theta)
    if n <= p:
        raise ValueError(f"{n} rows for {p} parameters leave no residual; more rows than parameters are needed")
    robust = _robust(results.estimate)
    design, residual = robust.linearised
    hat = np.minimum((np.linalg.qr(design)[0] ** 2).sum(axis=1), 1 - 1e-12)
    scale = max(_scale(robust), _EXACT)
    student = np.abs(residual) / (scale * np.sqrt(1 - hat))
    found = [
        *_above(RESIDUAL, student, stats.t.isf(0.025 / n, n - p)),
        *_above(LEVERAGE, hat, 3 * p / n),
        *_above(COOK, student**2 * hat / (p * (1 - hat)), stats.f.ppf(0.5, p, n - p)),
    ]
    for reason in (K_ORDER, SIZE_ORDER):
        excess, pairs = _excess(results, reason, student)
        found += _above(reason, excess, np.sqrt(2) * scale * stats.t.isf(0.05 / max(pairs, 1), n - p))
    found.sort(key=lambda line: -line[2] / line[3])
    table = pd.DataFrame(found, columns=["row", "reason", "value", "limit"])
    return table.assign(row=results.resid.index.take(table["row"].to_numpy(dtype=np.intp)))


def _above(reason: str, value: FloatArray, limit: float) -> list[tuple[int, str, float, float]]:
    return [(int(i), reason, float(value[i]), float(limit)) for i in np.flatnonzero(value > limit)]


def _robust(estimate: Estimate) -> Estimate:
    """The estimate by Huber's loss, its threshold in step with the residuals' own scale."""
    for _ in range(_REWEIGHTINGS):
        scale = _scale(estimate)
        if scale < _EXACT:
            break
        loss = Loss("huber", estimate.loss.on_logs, 1.345 * scale)
        theta = minimise(estimate.surface, estimate.response, loss, estimate.theta[None]).theta[0]
        estimate = replace(estimate, loss=loss, theta=theta)
    return estimate


def _scale(estimate: Estimate) -> float:
    """The median absolute residual as a standard deviation, corrected for the parameters estimated."""
    n, p = estimate.linearised[0].shape
    return float(mad(estimate.linearised[1], center=0.0) * np.sqrt(n / (n - p)))


def _excess(results: LawResults, reason: str, student: FloatArray) -> tuple[FloatArray, int]:
    """By how much each row breaks the order, (n,), and of how many pairs.

    It is 0 for a row that keeps the order, or that the law fits the better of two.
    """
    excess, pairs = np.zeros(results.nobs), 0
    if results.surface.form.response not in ("loss", "delta"):
        return excess, pairs
    observed = results.estimate.response
    height = np.log(observed) if results.loss.on_logs else observed
    columns = _columns(results)
    for name in columns.select_dtypes("number").columns.intersection(list(_ORDERED[reason])):
        place = columns[name].to_numpy()
        for rows in _alike(columns, name):
            pairs += len(rows) * (len(rows) - 1) // 2
            for row, lower in _pairs(place[rows], height[rows]):
                worse = max(rows[row], rows[lower], key=lambda i: student[i])
                excess[worse] = max(excess[worse], height[rows[row]] - height[rows[lower]])
    return excess, pairs


def _columns(results: LawResults) -> pd.DataFrame:
    """The columns that the law reads, and the model where rows are grouped."""
    columns = pd.DataFrame({name: getattr(results.surface._x, name) for name in results.surface.form.columns})
    groups = results.estimate.groups
    return columns if groups is None else columns.assign(model=groups.astype(str).to_numpy())


def _alike(columns: pd.DataFrame, name: str) -> list[NDArray[np.intp]]:
    """The positions of rows that agree in all but column ``name``, and in what must move with it."""
    if name in _ORDERED[K_ORDER] and "total_bits" in columns and "model" not in columns:
        return []  # nothing tells which rows are one model
    moving = [name, "total_bits"] if name in _ORDERED[K_ORDER] else [name, "model"]
    same = columns.drop(columns=moving, errors="ignore")
    if same.columns.empty:
        return [np.arange(len(columns))]
    return [np.asarray(rows) for rows in same.groupby(list(same.columns)).indices.values()]


def _pairs(place: FloatArray, height: FloatArray) -> Iterator[tuple[int, int]]:
    """Each row that lies above one further left, beside the lowest such."""
    lowest = -1
    left_to_right = np.argsort(place, kind="stable")
    for level in np.split(left_to_right, np.flatnonzero(np.diff(place[left_to_right])) + 1):
        if lowest >= 0:
            yield from ((int(row), lowest) for row in level if height[row] > height[lowest])
        candidate = int(level[height[level].argmin()])
        lowest = candidate if lowest < 0 or height[candidate] < height[lowest] else lowest

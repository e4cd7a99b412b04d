"""Levels learned from one tensor: its quantiles, and the levels of least squared error (Lloyd-Max).

Both are deterministic and computed on the CPU in float64.
"""

import numpy as np
from numpy.typing import NDArray

from kbitlib.quant.codebooks import normal_float_probabilities

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# How far a cut may move in one round, in clusters, and in how many steps to each side; then finer, and from the start
# again until a whole cycle gains less than TOLERANCE.
SPANS = (4.0, 1.0, 0.25, 0.03)
STEPS = 12
TOLERANCE = 1e-5


def quantiles(x: Floats, k: int) -> Floats:
    """(2^k,) quantiles of the values x at the probabilities of normal float, zero among them, over the largest.

    What normal float is for a Gaussian, this is for the tensor's own distribution (Dettmers & Zettlemoyer 2022, the
    case for 4-bit precision, section 2).
    """
    below, above = normal_float_probabilities(k)
    if len(x) == 0:
        return np.zeros(2**k)
    at = np.concatenate([1 - below, above]) * (len(x) - 1)
    levels = np.sort(np.append(np.interp(at, np.arange(len(x)), np.sort(x)), 0.0))
    return levels / (np.abs(levels).max() or 1.0)


def lloyd_max(x: Floats, w: Floats, levels: int) -> Floats:
    """The levels of least squared error for values x that count w times: k-means in one dimension (Lloyd 1982; Max
    1960).

    In one dimension clusters are intervals, so only the cuts between them are sought. They start where Panter and Dite
    (1951) put them, in proportion to density^(1/3), and are then moved all at once: each cut has 2*STEPS+1 places to go
    to, and dynamic programming (Wu 1991) finds the best joint choice. Cuts may move past their neighbours' places, so
    the search does not stop where Lloyd's iteration does. The error ends within 1e-4 of the optimum for samples much
    larger than the number of levels, and within 1 percent for samples only a few times larger.
    """
    x, w = x[w > 0], w[w > 0]
    n, order = len(x), np.argsort(x)
    if n == 0:
        return np.zeros(levels)
    x, w = x[order], w[order]
    sums = np.zeros((3, n + 1))
    np.cumsum(np.stack([w, w * x, w * x * x]), axis=1, out=sums[:, 1:])
    cuts = np.concatenate([[0], _panter_dite(x, w, levels), [n]])
    error = before = np.inf
    while True:
        for span in SPANS:
            cuts, error = _best_cuts(sums, _places(cuts, span))
        if error >= before * (1 - TOLERANCE):
            break
        before = error
    weight, moment = np.diff(sums[0][cuts]), np.diff(sums[1][cuts])
    means = moment[weight > 0] / weight[weight > 0]
    return np.pad(means, (0, levels - len(means)), mode="edge")


def _panter_dite(x: Floats, w: Floats, levels: int) -> Indices:
    """(levels-1,) first members of the clusters after the first; no gap between two values takes more than one cut."""
    mass = np.zeros(len(x))
    mass[1:] = np.cbrt(np.diff(x) ** 2 * (w[1:] + w[:-1]) / 2)
    for _ in range(4):
        mass = np.minimum(mass, mass.sum() / levels)
    total = np.cumsum(mass)
    return np.searchsorted(total, np.arange(1, levels) * total[-1] / levels)


def _places(cuts: Indices, span: float) -> Indices:
    """(levels-1, 2*STEPS+1) places for the inner cuts: up to `span` clusters to either side of where they are."""
    inner = np.arange(1, len(cuts) - 1)[:, None] + np.linspace(-span, span, 2 * STEPS + 1)
    return np.interp(inner, np.arange(len(cuts)), cuts).round().astype(np.int64)


def _best_cuts(sums: Floats, places: Indices) -> tuple[Indices, float]:
    """The cuts of least error, one from each row of places, and that error."""
    first, last = np.zeros(1, np.int64), np.full(1, sums.shape[1] - 1)
    steps = _error(sums, places[:-1, :, None], places[1:, None, :])
    best = _error(sums, first, places[0])
    came_from = []
    for step in steps:
        through = best[:, None] + step
        came_from.append(through.argmin(0))
        best = through.min(0)
    best = best + _error(sums, places[-1], last)
    choice = [int(best.argmin())]
    for previous in reversed(came_from):
        choice.append(int(previous[choice[-1]]))
    inner = places[np.arange(len(places)), choice[::-1]]
    return np.concatenate([first, inner, last]), float(best.min())


def _error(sums: Floats, start: Indices, stop: Indices) -> Floats:
    """Squared error of the values start..stop-1 about their mean; infinite where stop lies before start."""
    weight, moment, square = (s[stop] - s[start] for s in sums)
    error = np.maximum(square - moment**2 / np.where(weight > 0, weight, 1), 0)
    return np.where(start <= stop, error, np.inf)

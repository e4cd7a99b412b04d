"""Recompute the headline from quantization.csv by the definition alone, sharing no code with the library.

Usage: python recompute_best_k.py quantization.csv

Lowest loss among method rtn, element int, block 64: the mean over seeds of each model, linear interpolation in log2
total bits between models, at 200 budgets spaced evenly in the logarithm over the range that every k covers. Prints
JSON: best_k, share, hand_over [[from, to, log2_bits], ...], budgets [low, high] in bits.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from itertools import pairwise


def read_curves(path: str) -> dict[float, list[tuple[float, float]]]:
    """For each k the points (log2 total bits, mean loss), one a model, in order of size."""
    losses: dict[tuple[float, str], list[tuple[float, float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if (row["method"], row["element"]) == ("rtn", "int") and float(row["block"]) == 64:
                point = (math.log2(float(row["total_bits"])), float(row["loss"]))
                losses.setdefault((float(row["k"]), row["model"]), []).append(point)
    curves: dict[float, list[tuple[float, float]]] = {}
    for (k, _), points in losses.items():
        mean = tuple(math.fsum(values) / len(values) for values in zip(*points, strict=True))
        curves.setdefault(k, []).append((mean[0], mean[1]))
    return {k: sorted(curves[k]) for k in sorted(curves)}


def interpolate(points: list[tuple[float, float]], x: float) -> float:
    """The loss at log2 bits x; at the ends of the curve, where rounding may lead outside, that of the end."""
    if x <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1]


def recompute(path: str) -> dict[str, object]:
    """The headline of the table at ``path``."""
    curves = read_curves(path)
    low = max(points[0][0] for points in curves.values())
    high = min(points[-1][0] for points in curves.values())
    budgets = [low + (high - low) * i / 199 for i in range(200)]
    losses = [{k: interpolate(points, x) for k, points in curves.items()} for x in budgets]
    winners = [min(at, key=lambda k, at=at: (at[k], k)) for at in losses]
    best = max(curves, key=lambda k: (winners.count(k), -k))
    hand_over = []
    for i in range(199):
        before, after = winners[i], winners[i + 1]
        if before != after:
            first = losses[i][before] - losses[i][after]
            second = losses[i + 1][before] - losses[i + 1][after]
            part = first / (first - second) if first != second else 0.0
            hand_over.append([before, after, budgets[i] + part * (budgets[i + 1] - budgets[i])])
    return {
        "best_k": best,
        "share": winners.count(best) / 200,
        "hand_over": hand_over,
        "budgets": [2.0**low, 2.0**high],
    }


if __name__ == "__main__":
    print(json.dumps(recompute(sys.argv[1])))

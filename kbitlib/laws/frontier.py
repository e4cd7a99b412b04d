"""The headline: at a fixed number of bits of memory, which k has the lowest loss?

Every model of a family, quantized to k bits, is a point (total bits, loss); between models of one k the loss is
interpolated linearly in log2 total bits. At 200 budgets, spaced evenly in the logarithm over the range that every k
covers, the k of the lowest curve is the best. Several seeds of a model are averaged first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kbitlib.laws.curves import Family, Interpolation, average_seeds, interpolation
from kbitlib.laws.seed_noise import SeedNoise, draw_losses, seed_noise
from kbitlib.laws.tables import FloatArray, choose, column, numbers, refuse_empty_or_repeated
from kbitlib.laws.ties import ties_without_seeds

DRAWS = 4000
_DESCRIBES = ("family", "model", "method", "format", "element", "k", "block", "group")
IntArray = NDArray[np.intp]


@dataclass(frozen=True)
class HandOver:
    """At ``log2_bits`` the best k changes; an end of its ``interval`` that is the end of the range means beyond it."""

    from_k: float
    to_k: float
    log2_bits: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class BestK:
    """The best k over a range of budgets: ``best_k`` wins at most of them, ``share`` of the range.

    ``tie`` holds the best k and those that are as good: with seeds all that are ``tied`` with the winner over at least
    half of the budgets, without seeds those that ``ties`` finds by leaving out models; ``warnings`` says which.

    By budget in bits (the index): ``winners``, ``curves`` (loss, a column each k) and ``tied`` (which k are within seed
    noise of the winner). By k: ``shares``, with seed noise also the ends ``low`` and ``high`` of the interval of each
    share and the ``probability`` that this k wins most budgets. Where no model has two seeds, ``noise``, ``tied`` and
    every interval are None, and ``warnings`` says so.
    """

    best_k: float
    share: float
    tie: list[float]
    hand_over: list[HandOver]
    winners: pd.Series
    curves: pd.DataFrame
    shares: pd.DataFrame
    tied: pd.DataFrame | None
    noise: SeedNoise | None
    level: float
    models: list[str]
    warnings: list[str]

    @property
    def budgets(self) -> FloatArray:
        """The budgets (200,) in bits."""
        return self.curves.index.to_numpy(dtype=np.float64)

    @property
    def share_interval(self) -> tuple[float, float] | None:
        """The interval of the share of the best k."""
        if self.noise is None:
            return None
        ends = self.shares[["low", "high"]].loc[self.best_k].to_numpy(dtype=np.float64)
        return float(ends[0]), float(ends[1])

    @property
    def share_best_or_tied(self) -> float | None:
        """The share of budgets at which the best k wins or ties with the winner."""
        return None if self.tied is None else float(np.mean(self.tied[self.best_k]))


def best_k(
    table: pd.DataFrame,
    *,
    method: str | None = "rtn",
    element: str | None = "int",
    block: int | None = 64,
    bits: str = "total_bits",
    level: float = 0.95,
    seed: int = 0,
) -> BestK:
    """Find the best k at fixed total bits, with an interval that includes seed noise.

    The interval says what training the same models from other seeds would change (``seed_noise`` names what it
    assumes); how far the answer rests on the sizes chosen is what ``best_k_without_each_size`` shows.

    Args:
        table: one quantized model a row: ``model, k, loss``, the column ``bits``, and for the interval ``seed`` and
            ``delta`` (loss minus that of the same model in full precision); ``method, element, block`` choose the rows,
            and None takes all.
        bits: the column that budgets are counted in, ``total_bits`` or ``total_bits_all``.
        level: of the intervals; two k are tied where the probability of the other order exceeds (1 - level)/2.
        seed: of the simulation behind the intervals.

    Raises:
        ValueError: a missing column, no such rows, a loss that is not positive, a (model, seed, k) given twice, fewer
            than two k, or no budget that every k covers.
    """
    rows = choose(table, method=method, element=element, block=block)
    family = average_seeds(rows, bits)
    between = interpolation(family)
    curves = between.curves(family.loss)
    winning = curves.argmin(axis=1)  # the lower k where two are equal
    hand_over = _hand_over(curves, winning, family, between)
    shares = pd.DataFrame({"share": _shares(winning, family)}, index=pd.Index(family.levels, name="k"))
    best = int(shares["share"].argmax())
    noise, warnings = seed_noise(rows, family)
    tied = None
    if noise is None:
        tie, said = ties_without_seeds(family, best, level)
        warnings = [*warnings, said]
    else:
        drawn = between.curves(draw_losses(family, noise, DRAWS, np.random.default_rng(seed)))  # (draws, budgets, K)
        shares = shares.join(_share_intervals(drawn, family, level))
        hand_over = [_with_interval(point, drawn, family, between, level) for point in hand_over]
        tied = _tied(drawn, winning, level)
        tie = sorted({family.levels[best], *family.levels[tied.mean(axis=0) >= 0.5]})
    index = pd.Index(2.0**between.log2_budgets, name="budget")
    return BestK(
        best_k=float(family.levels[best]),
        share=float(shares["share"].max()),
        tie=[float(k) for k in tie],
        hand_over=hand_over,
        curves=pd.DataFrame(curves, index=index, columns=shares.index),
        winners=pd.Series(family.levels[winning], index=index, name="k"),
        shares=shares,
        tied=None if tied is None else pd.DataFrame(tied, index=index, columns=shares.index),
        noise=noise,
        level=level,
        models=family.models,
        warnings=warnings,
    )


def best_k_without_each_size(table: pd.DataFrame, **choice: object) -> pd.DataFrame:
    """``best_k`` with one model left out at a time: how far the answer rests on a single size.

    Rows are models, columns ``best_k, share, low_bits, high_bits``; without an outermost model the range is narrower.
    """
    rows = []
    for model in pd.unique(column(table, "model")):
        answer = best_k(table[table["model"] != model], **choice)  # type: ignore[arg-type]
        rows.append((model, answer.best_k, answer.share, answer.budgets[0], answer.budgets[-1]))
    return pd.DataFrame(rows, columns=["model", "best_k", "share", "low_bits", "high_bits"]).set_index("model")


def pareto(table: pd.DataFrame, bits: str = "total_bits") -> pd.DataFrame:
    """The frontier: the rows that no other row beats in loss at as few bits or fewer, in order of bits.

    Seeds are averaged first (the lowest of several is luck): rows that are alike in all of ``family, model, method,
    format, element, k, block, group`` are one, with the mean of ``bits`` and ``loss`` and the number of ``seeds``.
    ValueError for a missing column or a value that is not positive.
    """
    refuse_empty_or_repeated(table)
    alike = [name for name in _DESCRIBES if name in table.columns]
    values = table[alike].assign(loss=numbers(table, "loss"), seeds=1)
    values[bits] = numbers(table, bits)
    how = {bits: "mean", "loss": "mean", "seeds": "sum"}
    points = values.groupby(alike, dropna=False, sort=False, as_index=False).agg(how) if alike else values
    points = points.sort_values([bits, "loss"], ignore_index=True)
    lowest_before = points["loss"].cummin().shift(fill_value=np.inf)
    return points[points["loss"] < lowest_before].reset_index(drop=True)


def _shares(winning: IntArray, family: Family) -> FloatArray:
    """The share of the budgets (last axis) that each k wins, (..., K)."""
    return np.stack([(winning == k).mean(axis=-1) for k in range(len(family.levels))], axis=-1)


def _share_intervals(drawn: FloatArray, family: Family, level: float) -> pd.DataFrame:
    shares = _shares(drawn.argmin(axis=-1), family)  # (draws, K)
    low, high = np.quantile(shares, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    first = np.bincount(shares.argmax(axis=-1), minlength=len(family.levels)) / len(drawn)
    return pd.DataFrame({"low": low, "high": high, "probability": first}, index=pd.Index(family.levels, name="k"))


def _tied(drawn: FloatArray, winning: IntArray, level: float) -> NDArray[np.bool_]:
    """Which k (budgets, K) may, within seed noise, be below the winner of each budget; the winner is among them."""
    of_winner = drawn[:, np.arange(len(winning)), winning]  # (draws, budgets)
    below = (drawn < of_winner[..., None]).mean(axis=0)
    tied = below >= (1 - level) / 2
    tied[np.arange(len(winning)), winning] = True
    return tied


def _hand_over(curves: FloatArray, winning: IntArray, family: Family, between: Interpolation) -> list[HandOver]:
    """Where the winner changes; between two budgets the difference of the two curves is taken as linear."""
    found = []
    for i, (before, after) in enumerate(pairwise(winning)):
        if before != after:
            gap = curves[i : i + 2, before] - curves[i : i + 2, after]
            place = float(_zero(gap, between.log2_budgets[i : i + 2]))
            found.append(HandOver(float(family.levels[before]), float(family.levels[after]), place, None))
    return found


def _zero(gap: FloatArray, places: FloatArray) -> FloatArray:
    """Where a gap (..., 2), at most 0 at the first place and at least 0 at the second, is 0."""
    rise = gap[..., 1] - gap[..., 0]
    part = np.divide(-gap[..., 0], rise, out=np.zeros_like(rise), where=rise > 0)
    return np.asarray(places[..., 0] + part * (places[..., 1] - places[..., 0]))


def _with_interval(
    point: HandOver, drawn: FloatArray, family: Family, between: Interpolation, level: float
) -> HandOver:
    """In each draw the nearest crossing of the same two curves; an end of the range where there is none."""
    before, after = np.searchsorted(family.levels, [point.from_k, point.to_k])
    gap = drawn[..., before] - drawn[..., after]  # (draws, budgets), negative where the first is better
    rising = (gap[:, :-1] <= 0) & (gap[:, 1:] > 0)
    budgets = between.log2_budgets
    distance = np.abs(budgets[:-1] - point.log2_bits)
    cell = np.where(rising, distance, np.inf).argmin(axis=1)
    ends = cell[:, None] + np.array([0, 1])
    places = _zero(np.take_along_axis(gap, ends, axis=1), budgets[ends])
    still_better = gap[:, distance.argmin()] <= 0
    places = np.where(rising.any(axis=1), places, np.where(still_better, budgets[-1], budgets[0]))
    low, high = np.quantile(places, [0.5 - level / 2, 0.5 + level / 2])
    return replace(point, interval=(float(low), float(high)))

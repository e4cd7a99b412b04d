"""Compute-optimal sizes without a law of loss: Hoffmann et al. 2022's Approaches 1 and 2 (the third is ``chinchilla``).

Both find, for several budgets of training compute C, the size that loses least, and then the power laws
params = G C^a and tokens = H C^b. Where no best size can be found inside the sizes tried, they say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from kbitlib.laws.tables import FloatArray, read_columns, refuse_empty_or_repeated

COLUMNS = ("params", "tokens", "flops", "loss")
_BUDGETS = 200  # of the envelope, evenly spaced in log C


@dataclass(frozen=True)
class Allocation:
    """Optimal sizes for compute: ``points``, one row a budget, and the power laws through them.

    ``exponents`` has the rows ``params`` and ``tokens`` and the columns ``exponent, se, low, high, factor``, the
    interval of 95 %. ``left_out`` says in a sentence each which rows or budgets took no part, and why.
    """

    points: pd.DataFrame
    exponents: pd.DataFrame
    left_out: list[str]


def envelope(table: pd.DataFrame) -> Allocation:
    """Approach 1: the training runs' envelope, with the runs of one size joined by straight lines in log loss, log C.

    Args:
        table: columns ``params, tokens, flops, loss``; several lengths of training for each of at least five sizes.

    Only budgets count above all at which the smallest size is best, below all at which the largest is, and where both a
    smaller and a larger size than the best have runs: elsewhere the best may lie outside what was tried. The lowest of
    noisy losses are lucky ones: noise of 1 % of the loss lowers the exponent by about .02. The intervals, by a
    jackknife of sizes with t(sizes - 1), are wide enough for it.

    Raises ValueError for a bad column, and where fewer than three sizes are best in between.
    """
    rows = _checked(table).map(np.log)
    runs = rows.groupby(["params", "flops"], as_index=False).mean()  # several seeds of a run by their mean
    sizes = [run for _, run in runs.groupby("params") if len(run) > 1]
    if len(sizes) < 5:
        raise ValueError(f"{len(sizes)} sizes have runs of several lengths; at least five are needed")
    points, outside = _best_between(sizes)
    if points["params"].nunique() < 3:
        raise ValueError(f"{points['params'].nunique()} sizes are best inside those tried; three are needed")
    left_out = [f"{outside} budgets, where a size beyond those tried may be best"] * (outside > 0)
    without = [_best_between(sizes[:i] + sizes[i + 1 :])[0] for i in range(len(sizes))]
    laws = {name: _jackknifed(points, without, name) for name in ("params", "tokens")}
    return Allocation(points.map(np.exp), pd.DataFrame(laws).T, left_out)


def isoflop(table: pd.DataFrame, budgets: Sequence[float], within: float = 0.1) -> Allocation:
    """Approach 2: at each budget a parabola of loss in log params, whose lowest point is the best size.

    Args:
        table: columns ``params, tokens, flops, loss``.
        budgets: FLOPs; a row belongs to the budget that its own differs from by less than the share ``within``.

    A budget is left out that has fewer than four sizes, whose parabola opens downwards, or has its lowest point beyond
    the sizes tried. The others weigh by the Delta method's variance of their lowest point; HC3, t with budgets - 2.

    Raises ValueError for a bad column, and for fewer than three budgets with a best size.
    """
    rows = _checked(table)
    found, left_out = [], []
    for budget in sorted(budgets):
        near = rows[np.abs(np.log(rows["flops"] / budget)) < np.log1p(within)]
        point, reason = _lowest(near)
        if reason:
            left_out.append(f"the budget of {budget:.3g} FLOPs: {reason}")
        else:
            found.append({"flops": budget, "rows": len(near), **point})
    if len(found) < 3:
        raise ValueError(f"{len(found)} budgets have a best size; three are needed ({'; '.join(left_out)})")
    points = pd.DataFrame(found)
    points["tokens"] = points["flops"] / (points["params"] * _flops_per_token_and_parameter(rows))
    laws = {name: _weighted(points, name) for name in ("params", "tokens")}
    return Allocation(points, pd.DataFrame(laws).T, left_out)


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    refuse_empty_or_repeated(table)
    return pd.DataFrame(read_columns(table, COLUMNS, {}))


def _best_between(sizes: list[pd.DataFrame]) -> tuple[pd.DataFrame, int]:
    """The best size, in logs, at every budget between the smallest's and the largest's; how many budgets are not."""
    ends = pd.concat(sizes)["flops"].agg(["min", "max"])
    logs = np.linspace(ends["min"], ends["max"], _BUDGETS)
    losses, tokens = (_at(logs, sizes, name) for name in ("loss", "tokens"))
    seen = ~np.isnan(losses).all(axis=0)
    logs, losses, tokens = logs[seen], losses[:, seen], tokens[:, seen]
    best = np.nanargmin(losses, axis=0)
    between = (logs > logs[best == 0].max(initial=-np.inf)) & (logs < logs[best == len(sizes) - 1].min(initial=np.inf))
    tried = ~np.isnan(losses)
    smallest, largest = tried.argmax(axis=0), len(sizes) - 1 - tried[::-1].argmax(axis=0)
    inside = np.flatnonzero(between & (smallest < best) & (best < largest))
    best = best[inside]
    params = np.array([run["params"].iloc[0] for run in sizes])
    points = {"flops": logs[inside], "params": params[best]}
    points |= {"tokens": tokens[best, inside], "loss": losses[best, inside]}
    return pd.DataFrame(points), len(logs) - len(inside)


def _at(logs: FloatArray, sizes: list[pd.DataFrame], name: str) -> FloatArray:
    """The logarithm of a column (sizes, budgets), linear between a size's own runs and NaN beyond them."""
    return np.array([np.interp(logs, run["flops"], run[name], left=np.nan, right=np.nan) for run in sizes])


def _jackknifed(points: pd.DataFrame, without: list[pd.DataFrame], name: str) -> dict[str, float]:
    """The line through points in logs, and its interval from the same without each of several sizes."""
    slope, constant = np.polyfit(points["flops"], points[name], 1)
    sizes = len(without)
    shifts = [np.polyfit(rest["flops"], rest[name], 1)[0] - slope if len(rest) > 2 else np.nan for rest in without]
    error = np.sqrt((sizes - 1) / sizes * np.square(shifts).sum())
    width = stats.t.ppf(0.975, sizes - 1) * error
    return {"exponent": slope, "se": error, "low": slope - width, "high": slope + width, "factor": np.exp(constant)}


def _lowest(rows: pd.DataFrame) -> tuple[dict[str, float], str]:
    """The lowest point of a parabola in log params, with its standard error; or why there is none."""
    if rows["params"].nunique() < 4:
        return {}, f"{rows['params'].nunique()} sizes, and a parabola with its error needs four"
    middle = np.log(rows["params"]).mean()
    size = np.log(rows["params"]) - middle
    line = sm.OLS(rows["loss"].to_numpy(), np.column_stack([np.ones(len(rows)), size, size**2])).fit()
    _, slope, curve = line.params
    if curve <= 0:
        return {}, "the parabola opens downwards"
    lowest = -slope / (2 * curve)
    if not size.min() < lowest < size.max():
        return {}, "the best size lies beyond those tried"
    gradient = np.array([0.0, -1 / (2 * curve), slope / (2 * curve**2)])
    error = float(np.sqrt(gradient @ line.cov_params() @ gradient))
    return {
        "params": float(np.exp(lowest + middle)),
        "se_log": error,
        "loss": float(line.predict([1, lowest, lowest**2])[0]),
    }, ""


def _flops_per_token_and_parameter(rows: pd.DataFrame) -> float:
    """Six by the usual count; the table's own, as its column of compute was counted."""
    return float((rows["flops"] / (rows["params"] * rows["tokens"])).median())


def _weighted(points: pd.DataFrame, name: str) -> dict[str, float]:
    design = sm.add_constant(np.log(points["flops"]))
    floor = 1e-3 * points["se_log"].max()  # a budget whose parabola is exact must not decide alone
    line = sm.WLS(np.log(points[name]), design, weights=1 / np.maximum(points["se_log"], floor) ** 2)
    fitted = line.fit(cov_type="HC3", use_t=True)
    low, high = fitted.conf_int().loc["flops"]
    constant, slope = fitted.params
    return {"exponent": slope, "se": fitted.bse["flops"], "low": low, "high": high, "factor": np.exp(constant)}

"""Loss against total bits, one curve a k: a family's means over seeds, interpolated between its models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kbitlib.laws.tables import FloatArray, column, numbers

BUDGETS = 200


@dataclass(frozen=True)
class Family:
    """M models at K levels of k: ``log2_bits``, mean ``loss``, number of ``seeds``, each (M, K), NaN where absent."""

    models: list[str]
    levels: FloatArray
    log2_bits: FloatArray
    loss: FloatArray
    seeds: FloatArray


def average_seeds(rows: pd.DataFrame, bits: str) -> Family:
    """The mean over seeds of each (model, k), models in order of size.

    ValueError for a missing column, a value that is not positive, or a (model, seed, k) that stands there twice.
    """
    frame = pd.DataFrame(
        {
            "model": column(rows, "model").astype(str).to_numpy(),
            "seed": rows["seed"].to_numpy() if "seed" in rows else 0,
            "k": numbers(rows, "k"),
            "log2_bits": np.log2(numbers(rows, bits)),
            "loss": numbers(rows, "loss"),
        }
    )
    twice = frame[frame.duplicated(["model", "seed", "k"])]
    if len(twice):
        model, seed, k = twice.iloc[0][["model", "seed", "k"]]
        raise ValueError(
            f"model {model}, seed {seed}, k = {k:g} stands in the chosen rows twice; one row for each is allowed"
        )
    means = frame.groupby(["model", "k"])[["log2_bits", "loss"]].mean().unstack("k")
    order = frame.groupby("model")["log2_bits"].mean().sort_values().index
    counts = frame.groupby(["model", "k"]).size().unstack("k").loc[order]
    return Family(
        models=[str(name) for name in order],
        levels=counts.columns.to_numpy(dtype=np.float64),
        log2_bits=means["log2_bits"].loc[order].to_numpy(dtype=np.float64),
        loss=means["loss"].loc[order].to_numpy(dtype=np.float64),
        seeds=counts.to_numpy(dtype=np.float64),
    )


@dataclass(frozen=True)
class Interpolation:
    """Linear interpolation in log2 total bits at budgets that every k covers; ``weights`` (K, budgets, M)."""

    log2_budgets: FloatArray
    weights: FloatArray

    def curves(self, loss: FloatArray) -> FloatArray:
        """Losses (..., M, K) to losses at the budgets (..., budgets, K)."""
        filled = np.nan_to_num(loss)
        return np.stack([filled[..., k] @ weight.T for k, weight in enumerate(self.weights)], axis=-1)


def covered(family: Family) -> tuple[float, float]:
    """From where to where every k covers the budgets, in log2 bits; the first is not below the second if none does."""
    absent = np.isnan(family.log2_bits)
    smallest = np.where(absent, np.inf, family.log2_bits).min(axis=0)
    largest = np.where(absent, -np.inf, family.log2_bits).max(axis=0)
    return float(smallest.max()), float(largest.min())


def interpolation(family: Family) -> Interpolation:
    """Budgets spaced evenly in the logarithm over the range that every k covers, and the weights of the models there.

    ValueError for fewer than two k, two models of the same total bits, or no budget that every k covers.
    """
    if len(family.levels) < 2:
        raise ValueError(f"only k = {family.levels[0]:g} is among the chosen rows; at least two k are needed")
    low, high = covered(family)
    if low >= high:
        raise ValueError(
            f"no budget is covered by every k: the smallest models reach up from 2^{low:.2f} bits at one k, "
            f"the largest end at 2^{high:.2f} at another; more sizes or fewer k are needed"
        )
    budgets = np.linspace(low, high, BUDGETS)
    weights = [_weights(bits, budgets, k) for bits, k in zip(family.log2_bits.T, family.levels, strict=True)]
    return Interpolation(budgets, np.array(weights))


def _weights(log2_bits: FloatArray, budgets: FloatArray, k: float) -> FloatArray:
    """The weight (budgets, M) of each model in the linear interpolation at each budget."""
    present = np.flatnonzero(np.isfinite(log2_bits))
    order = present[np.argsort(log2_bits[present])]
    places = log2_bits[order]
    if (np.diff(places) <= 0).any():
        raise ValueError(f"two models have the same total bits at k = {k:g}; the models of a family differ in size")
    weights = np.zeros((len(budgets), len(log2_bits)))
    for position, model in enumerate(order):
        weights[:, model] = np.interp(budgets, places, np.eye(len(places))[position])
    return weights

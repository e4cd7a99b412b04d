"""What a bit is worth in parameters: how many times the parameters a model needs if it has one bit less.

At a size and k a model has some loss; the curve of the next lower k reaches the same loss at more parameters. The ratio
of the two numbers is what the bits between are worth. They pay, at fixed total bits, where it exceeds the ratio of the
bits per weight.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from kbitlib.laws.curves import Family, average_seeds
from kbitlib.laws.seed_noise import draw_losses, seed_noise
from kbitlib.laws.tables import FloatArray, choose, numbers

DRAWS = 4000


def worth_of_a_bit(
    table: pd.DataFrame,
    *,
    method: str | None = "rtn",
    element: str | None = "int",
    block: int | None = 64,
    params: str = "params_nonemb",
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The parameters that the next lower k needs for the same loss, as a multiple, at each size and each k.

    Between models the loss is linear in log2 of ``params``, the parameters that are quantized. One row a pair of
    neighbouring k and a size whose loss the models of the lower k reach: ``model, params, from_k, to_k, loss`` (at
    ``to_k``, nats a token), ``times`` (parameters at ``from_k`` over parameters at ``to_k``), the ends ``low`` and
    ``high`` of its interval from seed noise (NaN where no model has two seeds; 0 or infinite: beyond the smallest or
    the largest model), ``break_even`` (the ratio of bits per weight) and ``pays`` (``times`` exceeds it).

    The arguments are those of ``best_k``; ValueError as there.
    """
    rows = choose(table, method=method, element=element, block=block)
    family = average_seeds(rows, params)
    if len(family.levels) < 2:
        raise ValueError(f"only k = {family.levels[0]:g} is among the chosen rows; at least two k are needed")
    bits = _bits_per_weight(rows, family)
    noise, _ = seed_noise(rows, family)
    drawn = None if noise is None else draw_losses(family, noise, DRAWS, np.random.default_rng(seed))
    lines = []
    for lower, upper in pairwise(range(len(family.levels))):
        times = _times(family, family.loss, lower, upper)
        ends = np.full((2, len(times)), np.nan)
        if drawn is not None:
            ends = np.quantile(
                _times(family, drawn, lower, upper), [0.5 - level / 2, 0.5 + level / 2], axis=0, method="nearest"
            )
        lines.append(
            pd.DataFrame(
                {
                    "model": family.models,
                    "params": 2.0 ** family.log2_bits[:, upper],
                    "from_k": family.levels[lower],
                    "to_k": family.levels[upper],
                    "loss": family.loss[:, upper],
                    "times": times,
                    "low": ends[0],
                    "high": ends[1],
                    "break_even": bits[:, upper] / bits[:, lower],
                }
            )
        )
    worth = pd.concat(lines)
    worth = worth[np.isfinite(worth["times"]) & (worth["times"] > 0)]
    return worth.assign(pays=worth["times"] > worth["break_even"]).reset_index(drop=True)


def _bits_per_weight(rows: pd.DataFrame, family: Family) -> FloatArray:
    frame = pd.DataFrame(
        {
            "model": rows["model"].astype(str).to_numpy(),
            "k": numbers(rows, "k"),
            "bits": numbers(rows, "bits_per_weight"),
        }
    )
    means = frame.groupby(["model", "k"])["bits"].mean().unstack("k")
    return means.loc[family.models, family.levels].to_numpy(dtype=np.float64)


def _times(family: Family, loss: FloatArray, lower: int, upper: int) -> FloatArray:
    """For losses (..., M, K) the multiple (..., M): infinite or 0 beyond the models, NaN where a k is absent."""
    both = np.isfinite(family.loss[:, [lower, upper]]).all(axis=1)
    sizes = family.log2_bits[both, lower]
    curve, wanted = loss[..., both, lower], loss[..., both, upper]
    reached = curve[..., None, :] <= wanted[..., None]  # (..., wanted, M)
    after = reached.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    high, low = np.take_along_axis(curve, before, axis=-1), np.take_along_axis(curve, after, axis=-1)
    part = np.divide(high - wanted, high - low, out=np.zeros_like(high), where=high > low)
    needed = sizes[before] + part * (sizes[after] - sizes[before])
    needed = np.where(reached[..., 0], -np.inf, np.where(reached.any(axis=-1), needed, np.inf))
    times = np.full(loss.shape[:-1], np.nan)
    times[..., both] = 2.0 ** (needed - sizes)
    return times

"""Families of models with a known law and known seed noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

SIZES = {
    "w24-d2": 13_824,
    "w32-d3": 36_864,
    "w48-d3": 82_944,
    "w64-d4": 196_608,
    "w96-d5": 552_960,
    "w128-d6": 1_179_648,
}
SEEDS = (3, 3, 3, 3, 2, 1)
DELTA = {2: 3.5, 3: 0.55, 4: 0.15, 5: 0.04, 6: 0.013, 7: 0.004, 8: 0.001}  # of the smallest model, nats
DECAY = {2: 0.19, 3: 0.46, 4: 0.65, 5: 0.62, 6: 0.62, 7: 0.62, 8: 0.62}  # its power of size: as small models behave


def simulate_family(
    *,
    seeds: tuple[int, ...] = SEEDS,
    shift_sd: float = 0.008,
    delta_sd: float = 0.08,
    random_state: int = 0,
    levels: tuple[int, ...] = tuple(DELTA),
) -> pd.DataFrame:
    """The quantized models of a made-up family whose loss is 0.5 + 8.6 N^-.195 and whose delta decays with size.

    Seeds shift the loss by a normal of ``shift_sd`` nats and each delta by a normal of ``delta_sd`` of itself.
    """
    random = np.random.default_rng(random_state)
    rows = []
    for (model, size), count in zip(SIZES.items(), seeds, strict=True):
        for seed in range(count):
            full = 0.5 + 8.6 * size**-0.195 + shift_sd * random.standard_normal()
            for k in levels:
                delta = DELTA[k] * (size / 13_824) ** -DECAY[k] * (1 + delta_sd * random.standard_normal())
                rows.append((model, seed, size, k, k + 0.25, size * (k + 0.25), full + delta, delta))
    columns = ["model", "seed", "params_nonemb", "k", "bits_per_weight", "total_bits", "loss", "delta"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(params=table["params_nonemb"], tokens=4e6, method="rtn", element="int", block=64)


@pytest.fixture
def family() -> Callable[..., pd.DataFrame]:
    """The function that simulates a family."""
    return simulate_family

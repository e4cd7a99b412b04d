"""Ties where there are no seeds: found where two k are equal but for noise, and not where one is better."""

from __future__ import annotations

import numpy as np
import pytest

from kbitlib.laws.curves import Family, interpolation
from kbitlib.laws.ties import ties_without_seeds


def simulated(models: int, gap: float, random: np.random.Generator) -> Family:
    """k = 3 and 4 whose losses at the same total bits differ by ``gap`` and noise of .02; k = 16 far above."""
    levels = np.array([3.0, 4.0, 16.0])
    log2_bits = np.linspace(20, 30, models)[:, None] + np.log2(levels)
    loss = 3 - 0.15 * (log2_bits - 20) + [0.0, gap, 1.0] + 0.02 * random.standard_normal((models, 3))
    return Family([f"m{i}" for i in range(models)], levels, log2_bits, loss, np.ones((models, 3)))


def tied(family: Family) -> list[float]:
    wins = np.bincount(interpolation(family).curves(family.loss).argmin(axis=1), minlength=3)
    return ties_without_seeds(family, int(wins.argmax()), 0.95)[0]


@pytest.mark.parametrize(("gap", "fewest", "most"), [(0.0, 0.88, 1.0), (0.05, 0.0, 0.12)])
def test_equal_k_are_a_tie_and_different_ones_are_not(gap: float, fewest: float, most: float) -> None:
    random = np.random.default_rng(1)
    found = [tied(simulated(10, gap, random)) for _ in range(150)]
    assert fewest <= np.mean([3.0 in ks and 4.0 in ks for ks in found]) <= most
    assert not any(16.0 in ks for ks in found)


def test_a_trend_is_no_noise() -> None:
    """k = 4 is better everywhere, at small budgets by far: no tie, however the mean gap moves without a model."""
    family = simulated(5, 0.0, np.random.default_rng(0))
    family.loss[:, 0] = family.loss[:, 1] + 2 * np.exp(-np.arange(5.0))
    assert ties_without_seeds(family, 1, 0.95)[0] == [4.0]


def test_what_it_rests_on_is_said() -> None:
    family = simulated(4, 0.05, np.random.default_rng(0))
    assert ties_without_seeds(family, 0, 0.95)[1] == "without seeds, ties are told by leaving out each of 4 models"
    narrow = Family(
        family.models, family.levels, np.linspace(20, 22, 4)[:, None] + [0, 0.4, 1.6], family.loss, family.seeds
    )
    assert ties_without_seeds(narrow, 0, 0.95)[1].endswith("the 4 no budget is covered by every k")
    two = simulated(2, 0.05, np.random.default_rng(0))
    assert ties_without_seeds(two, 0, 0.95) == (
        [3.0],
        "without seeds and with so few models nothing tells which k are a tie",
    )

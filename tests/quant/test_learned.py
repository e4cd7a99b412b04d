"""Learned levels: quantiles, and Lloyd-Max against an exhaustive dynamic programme and Max's table."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from kbitlib.quant.codebooks import codebook
from kbitlib.quant.learned import lloyd_max, quantiles

Floats = NDArray[np.float64]
# Max (1960), table I: mean squared error of the best 2^k levels for a unit Gaussian.
MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}


def squared_error(x: Floats, w: Floats, levels: Floats) -> float:
    return float((w * np.abs(x[:, None] - levels).min(1) ** 2).sum())


def least_error(x: Floats, w: Floats, clusters: int) -> float:
    """By dynamic programming over all cuts."""
    order = np.argsort(x)
    sums = [np.concatenate([[0], np.cumsum(v)]) for v in (w[order], (w * x)[order], (w * x * x)[order])]
    weight, moment, square = (s[None, :] - s[:, None] for s in sums)
    cost = np.where(weight > 0, square - moment**2 / np.where(weight > 0, weight, 1), np.inf)
    np.fill_diagonal(cost, 0)
    best = cost[0]
    for _ in range(clusters - 1):
        best = (best[:, None] + cost).min(0)
    return float(best[-1])


def best_gaussian_error(k: int) -> float:
    """Lloyd's iteration on the density itself."""
    levels = np.sqrt(3) * ndtri((np.arange(2**k) + 0.5) / 2**k)
    for _ in range(3000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        mass = np.diff(ndtr(edges))
        levels = -np.diff(np.exp(-(edges**2) / 2)) / np.sqrt(2 * np.pi) / mass
    return float(1 - (mass * levels**2).sum())


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_max_1960_on_the_quantile_grid_of_a_gaussian(k: int) -> None:
    x = ndtri((np.arange(200_000) + 0.5) / 200_000)
    error = np.mean(np.square(x - nearest(x, lloyd_max(x, np.ones_like(x), 2**k))))
    assert error == pytest.approx(MAX_1960[k], rel=2e-3)  # the table's last entries are low by as much
    assert error == pytest.approx(best_gaussian_error(k), rel=1e-3)  # the grid lacks the outermost tails


def nearest(x: Floats, levels: Floats) -> Floats:
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


@pytest.mark.parametrize("clusters", [4, 16, 64])
@pytest.mark.parametrize("kind", ["gauss", "student", "uniform", "two peaks", "weighted"])
@pytest.mark.parametrize("n", [100, 600])
def test_close_to_the_optimum_of_small_samples(kind: str, n: int, clusters: int) -> None:
    random = np.random.default_rng(n)
    x = {
        "gauss": random.standard_normal,
        "student": lambda n: random.standard_t(3, n),
        "uniform": random.random,
        "two peaks": lambda n: random.standard_normal(n) * 0.2 + np.sign(random.random(n) - 0.4),
        "weighted": random.standard_normal,
    }[kind](n)
    w = random.random(n) if kind == "weighted" else np.ones(n)
    levels = lloyd_max(x, w, clusters)
    assert levels.shape == (clusters,)
    assert np.all(np.diff(levels) >= 0)
    assert squared_error(x, w, levels) <= 1.01 * least_error(x, w, clusters) + 1e-12


@pytest.mark.parametrize("k", [2, 4, 6, 8])
def test_large_samples_end_within_a_ten_thousandth_of_lloyds_fixed_point(k: int) -> None:
    x = np.random.default_rng(k).standard_normal(100_000)
    found = lloyd_max(x, np.ones_like(x), 2**k)
    levels = found.copy()
    for _ in range(200):
        code = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        levels = np.bincount(code, x, len(levels)) / np.bincount(code, minlength=len(levels))
    polished, start = (np.square(x - nearest(x, each)).mean() for each in (levels, found))
    assert start <= polished * (1 + 1e-4)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_values_than_levels_are_met_exactly(n: int) -> None:
    x = np.arange(n, dtype=float)
    levels = lloyd_max(x, np.ones(n), 8)
    assert levels.shape == (8,)
    assert set(x) <= set(levels)


def test_the_order_of_the_values_does_not_matter() -> None:
    x = np.random.default_rng(0).standard_normal(3000)
    assert np.array_equal(lloyd_max(x, np.ones(3000), 16), lloyd_max(x[::-1].copy(), np.ones(3000), 16))


@pytest.mark.parametrize("k", [2, 3, 4, 5, 8])
def test_quantiles_of_a_gaussian_are_normal_float(k: int) -> None:
    x = ndtri((np.arange(400_000) + 0.5) / 400_000)
    assert np.abs(quantiles(x, k) - codebook(f"nf{k}").levels.numpy()).max() < 3e-4


@pytest.mark.parametrize("x", [np.zeros(0), np.zeros(9), np.array([3.0]), np.array([-2.0, -1.0])])
def test_quantiles_of_degenerate_samples(x: Floats) -> None:
    levels = quantiles(x, 4)
    assert levels.shape == (16,)
    assert 0 in levels
    assert np.all(np.diff(levels) >= 0)
    assert np.abs(levels).max() <= 1


def test_levels_are_finite_in_float16() -> None:
    assert torch.from_numpy(lloyd_max(np.linspace(-1, 1, 999), np.ones(999), 256)).half().isfinite().all()

"""What theory says a k-bit quantizer of a unit Gaussian can do at best, as mean squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

FloatArray = NDArray[np.float64]


def shannon(k: float) -> float:
    """No quantizer of k bits a value has a smaller error: 2^-2k, 6.02 dB a bit (Shannon 1959, rate-distortion)."""
    return 2.0 ** (-2 * k)


def panter_dite(k: float) -> float:
    """What the best scalar quantizer comes to at many bits: (sqrt(3) pi / 2) 2^-2k (Panter & Dite 1951)."""
    return float(np.sqrt(3) * np.pi / 2 * shannon(k))


def uniform_error(step: float) -> float:
    """The error of rounding to a grid of a step, wherever the density is flat across it: step^2 / 12 (Bennett 1948)."""
    return step**2 / 12


def lloyd_max(k: int, iterations: int = 20_000) -> tuple[FloatArray, float]:
    """Levels (2^k,) and error of the best scalar quantizer of a unit Gaussian (Lloyd 1957; Max 1960, table I).

    Each level is the mean of its cell and each cell ends halfway between levels; iterated on the density, not on a
    sample.
    """
    levels = np.sqrt(3) * ndtri((np.arange(2**k) + 0.5) / 2**k)  # the density of best levels is that of variance 3
    for _ in range(iterations):
        mass, mean = cells(levels)
        moved = mean / mass
        if np.abs(moved - levels).max() < 1e-13:
            break
        levels = moved
    mass, mean = cells(levels)
    return levels, float(1 - 2 * (levels * mean).sum() + (levels**2 * mass).sum())


def codebook_error(levels: FloatArray) -> float:
    """The error of rounding a unit Gaussian to the nearest of ascending levels (n,)."""
    mass, mean = cells(levels)
    return float(1 - 2 * (levels * mean).sum() + (levels**2 * mass).sum())


def best_uniform(k: int) -> tuple[float, float]:
    """Step and error of the best uniform quantizer of a unit Gaussian with 2^k levels, symmetric (Max 1960, table
    II)."""
    from scipy.optimize import minimize_scalar

    grid = np.arange(2**k) - (2**k - 1) / 2
    found = minimize_scalar(
        lambda step: codebook_error(step * grid), bounds=(1e-3, 4.0), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x), float(found.fun)


def cells(levels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """For each of ascending levels, the mass of the unit Gaussian that is nearest to it, and the integral of x over
    it."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
    return np.diff(ndtr(edges)), -np.diff(density)


def expected_absmax(n: int) -> float:
    """The expected largest magnitude among n independent unit Gaussians: what sets the scale of a block of n."""
    x = np.linspace(0, 12, 24_001)
    below = (2 * ndtr(x) - 1) ** n
    return float(np.trapezoid(1 - below, x))

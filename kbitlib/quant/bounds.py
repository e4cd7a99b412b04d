"""What theory says of k-bit quantizers of a unit Gaussian, as mean squared error: the best there are, and ours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, roots_sh_legendre
from scipy.stats import entropy

from kbitlib.quant.codebooks import codebook
from kbitlib.quant.format import Format
from kbitlib.quant.learned import lloyd_max as weighted_lloyd_max
from kbitlib.quant.scales import ScaleRule

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
    return levels, codebook_error(levels)


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


def entropy_coded(step: float) -> tuple[float, float]:
    """Entropy in bits and error of rounding a unit Gaussian to any multiple of a step (Gish & Pierce 1968)."""
    reach = np.ceil(10 / step)
    levels = step * np.arange(-reach, reach + 1)
    return float(entropy(cells(levels)[0], base=2)), codebook_error(levels)


def expected_absmax(n: int, power: int = 1) -> float:
    """The expected power of the largest magnitude among n unit Gaussians: what sets the scale of a block of n."""
    x = np.linspace(0, 12, 24_001)
    return float(np.trapezoid(power * x ** (power - 1) * (1 - (2 * ndtr(x) - 1) ** n), x))


def gaussian_error(format: str | Format, n: int | None = None) -> float:
    """The expected relative squared error of a format on Gaussians of which n share a scale (or the format's block).

    An integral over what sets a block's scale: its largest magnitude m, of density 2n phi(m) (2 Phi(m) - 1)^(n-1), or
    with zero points and for log both extremes. The other values are Gaussians cut off there; the extremes have an error
    of their own. Exact but for ternary (a sum of magnitudes taken as normal), dq (scales taken as fp32), e4m3 (taken of
    a million blocks), quantile and kmeans (levels those of an endless tensor). ValueError for vector formats, other
    ranges than absmax, and an n that is unknown or below 2.
    """
    format = Format.parse(str(format))
    n = n or format.block
    if format.kind in ("vq", "e8") or format.range != "absmax":
        raise ValueError(f"no error is predicted for {format}, only for scalar formats whose range is absmax")
    if format.kind == "fixed":
        return codebook_error(_levels(format, n))
    if n < 2:
        raise ValueError(f"{format} does not say how many weights share a scale: n is to be 2 or more, not {n}")
    if format.kind in ("binary", "ternary"):
        return _mean_scaled_error(_levels(format, n), n)
    paired = format.zero != "none" or format.kind == "log"
    low, high, weight = _two_extremes(n, half=format.kind == "log") if paired else _largest(n)
    levels = _block_levels(format, n, low, high)
    own = ((levels - np.stack([low, high])[..., None]) ** 2).min(-1)
    own = own[1] if format.kind == "ints" else own.sum(0) if paired else own.mean(0)  # ints: its scale has that sign
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    if format.kind == "log":
        middles = np.sqrt(levels[:, 1:] * levels[:, :-1])
    return float(weight @ (own + (n - 1 - paired) * _cut_off_error(levels, middles, low, high))) / n


def _block_levels(format: Format, n: int, low: FloatArray, high: FloatArray) -> FloatArray:
    """The levels (m, 2^k), ascending, of blocks with these extremes (for log, of magnitudes) and scales as stored."""
    if format.kind == "log":
        return low[:, None] * (high / low)[:, None] ** np.linspace(0, 1, 2 ** (int(format.k) - 1))
    if format.zero == "none":
        low = np.zeros_like(low)
    if format.zero == "zp":
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = torch.from_numpy(high - low)
    scale = ScaleRule.of(format, [span]).rounded(span).double().numpy()[:, None]
    start = low[:, None] / scale
    return np.sort(((start if format.zero == "zpf" else np.rint(start)) + _levels(format, n)) * scale)


def _mean_scaled_error(levels: FloatArray, n: int) -> float:
    """Of levels times a block's mean magnitude, to which the value itself adds its part."""
    u, weight = roots_sh_legendre(1024)
    x, others = ndtri((1 + u) / 2)[:, None], np.sqrt(n - 1) * ndtri(u) * np.sqrt(1 - 2 / np.pi)
    mean = (x + others + (n - 1) * np.sqrt(2 / np.pi)) / n
    return float(weight @ ((levels * mean[..., None] - x[..., None]) ** 2).min(-1) @ weight)


def _levels(format: Format, n: int) -> FloatArray:
    """The levels at a scale of one; learned ones as they come out for blocks of n from an endless tensor."""
    if format.kind == "kmeans":
        return _endless_kmeans(int(format.k), n)
    if format.zero != "none":
        return format.levels().double().numpy()
    name = f"nf{format.k}" if format.kind == "quantile" else format.name
    return codebook(name, unit=format.unit_levels).levels.double().numpy() / format.fixed_steps


def _endless_kmeans(k: int, n: int) -> FloatArray:
    """Lloyd-Max levels (2^k,) of Gaussians over their block's largest magnitude m, each counted m^2 times."""
    _, largest, weight = _largest(n, 128)
    y = np.append((np.arange(2**14) + 0.5) / 2**14, 1.0)
    density = np.exp(-((largest * y[:, None]) ** 2) / 2) * np.sqrt(2 / np.pi) / (2 * ndtr(largest) - 1)
    mass = density @ (weight * largest**3) * (n - 1) / 2**14
    mass[-1] = weight @ largest**2  # the largest itself, on one
    return weighted_lloyd_max(np.append(-y[::-1], y), np.append(mass[::-1], mass), 2**k)


def _largest(n: int, count: int = 1024) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Where to integrate over the largest magnitude of n unit Gaussians: its negative, itself, weights, (count,)."""
    u, weight = roots_sh_legendre(count)
    m = ndtri((1 + u ** (1 / n)) / 2)
    return -m, m, weight


def _two_extremes(n: int, *, half: bool, count: int = 96) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Where to integrate over the smallest and the largest of n unit Gaussians (half: of their magnitudes)."""
    u, weight = roots_sh_legendre(count)
    below = np.repeat(u ** (1 / n), count)  # the mass below the largest, of which a part is below the smallest
    part = np.tile(-np.expm1(np.log1p(-u) / (n - 1)), count)
    low, high = (ndtri((1 + mass) / 2 if half else mass) for mass in (below * part, below))
    return low, high, np.outer(weight, weight).ravel()


def _cut_off_error(levels: FloatArray, middles: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """The error (m,) of levels (m, n) that meet in middles (m, n-1) on a Gaussian known to lie between low and high."""
    low, high = low[:, None], high[:, None]
    edges = np.concatenate([low, np.clip(middles, low, high), high], axis=1)
    density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
    mass, mean = np.diff(ndtr(edges)), -np.diff(density)
    square = mass - np.diff(edges * density)  # the integral of x^2 over each cell
    return np.asarray((square - 2 * levels * mean + levels**2 * mass).sum(1) / mass.sum(1))

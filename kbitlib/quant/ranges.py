"""What part of a block its levels are to cover: all of it, a percentile, or what costs the least squared error.

Shapes: x (rows, blocks, width) float32; a range is a pair (from, to) of (rows, blocks, 1).
"""

from collections.abc import Callable
from math import floor

import torch
from torch import Tensor

from kbitlib.quant.format import Format
from kbitlib.quant.rounding import Grid, decode, encode

Range = tuple[Tensor, Tensor]

# Fractions of the full range that the search for the least error tries: octaves first, then finer steps about the best.
OCTAVES = tuple(2.0**-i for i in range(1, 7))
FINER = tuple(2.0**-i for i in range(1, 5))


def full_range(x: Tensor, format: Format) -> Range:
    """All of each block's values, or what lies between percentiles.

    Without a zero point (0, largest magnitude); int4s (0, the value of largest magnitude with its sign); binary and
    ternary (0, mean magnitude) (Rastegari et al. 2016, XNOR-Net; Ma et al. 2024, BitNet b1.58), unless the range of
    least error is sought, for which ternary starts from the largest magnitude as others do; the E8 lattice (0, root
    mean square), twice that as the start of a search. With a zero point (smallest, largest value), for "zp" widened to
    hold zero.
    """
    if format.kind == "e8":
        top = x.abs().amax(2, keepdim=True)
        mean_square = (x / torch.where(top > 0, top, 1)).square().mean(2, keepdim=True)
        high = mean_square.sqrt() * top * (2 if format.range == "mse" else 1)
        return torch.zeros_like(high), high
    if format.zero == "zp":
        low, high = _ends(x, format)
        return low.clamp(max=0), high.clamp(min=0)
    if format.zero == "zpf":
        return _ends(x, format)
    if format.kind in ("binary", "ternary") and format.range != "mse":
        # in float64: then no order of adding changes the float32 it is rounded to
        high = x.abs().mean(2, keepdim=True, dtype=torch.float64).float()
    else:
        low, high = _ends(x, format)
        high = torch.where(high >= -low, high, low if format.kind == "ints" else -low)
    return torch.zeros_like(high), high


def _ends(x: Tensor, format: Format) -> Range:
    """Smallest and largest value, or the percentiles where these leave anything but one point."""
    low, high = (end + 0.0 for end in torch.aminmax(x, dim=2, keepdim=True))  # never minus zero
    if format.percentile is None:
        return low, high
    if format.zero == "none":
        top = _percentile(x.abs(), format.percentile)
        return torch.where(top > 0, torch.maximum(low, -top), low), torch.where(top > 0, torch.minimum(high, top), high)
    bottom, top = -_percentile(-x, format.percentile), _percentile(x, format.percentile)
    return torch.where(top > bottom, bottom, low), torch.where(top > bottom, top, high)


def _percentile(x: Tensor, percent: float) -> Tensor:
    """That percentile of each block, linear between neighbours in rank."""
    place = percent / 100 * (x.shape[2] - 1)
    rank = floor(place)
    top = x.topk(x.shape[2] - rank, dim=2).values  # descending, so that the last is the one of this rank
    return torch.lerp(top[..., -1:], top[..., -2:][..., :1], place - rank)


def least_error_range(
    x: Tensor, full: Range, make_grid: Callable[[Range], Grid], octaves: tuple[float, ...] = OCTAVES
) -> Range:
    """Each block's full range, shrunk by the fraction of least squared error on the grid that `make_grid` makes of it.

    The full range is among those tried, so the error is never above its own.
    """
    best = torch.ones_like(full[1])
    error = _squared_error(x, make_grid(full))

    def consider(tried: Tensor) -> None:
        nonlocal best, error
        tried_error = _squared_error(x, make_grid(_shrunk(full, tried)))
        best = torch.where(tried_error < error, tried, best)
        error = torch.minimum(tried_error, error)

    for octave in octaves:
        consider(torch.full_like(best, octave))
    for step in FINER:
        centre = best
        consider(centre * 2**-step)
        consider((centre * 2**step).clamp(max=1))
    return _shrunk(full, best)


def _shrunk(full: Range, fraction: Tensor) -> Range:
    """The range with its ends drawn towards zero, or towards the end nearest to zero where it does not hold zero."""
    low, high = full
    anchor = torch.zeros_like(low).clamp(torch.minimum(low, high), torch.maximum(low, high))
    return torch.lerp(anchor, low, fraction), torch.lerp(anchor, high, fraction)


def _squared_error(x: Tensor, grid: Grid) -> Tensor:
    """(rows, blocks, 1), infinite where the scale does not fit its type."""
    error = (decode(encode(x, grid), grid) - x).square_().sum(2, keepdim=True)
    return torch.where(grid.inverse.isfinite() & (grid.inverse != 0), error, torch.inf)

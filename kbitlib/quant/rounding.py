"""Weights to codes and back on given grids: the part that a fast kernel replaces.

Shapes: x and codes (rows, blocks, width); a grid's scale and zero (rows, blocks, 1), or what broadcasts with x.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kbitlib.quant.codebooks import Codebook
from kbitlib.quant.format import Format
from kbitlib.quant.vector import nearest_of_e8, nearest_point

FEW = 32  # up to so many thresholds, comparing with each is faster than searching among them


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels of each block.

    scale: float32, as stored. zero: float32, the integer zero point ("zp"), the minimum ("zpf"), log2 of the scale over
    the smallest magnitude (log formats), else 0. book: the codebook; None where scale and zero say all. points: that
    of vectors, (2^bits, weights a code); None for scalars.
    """

    format: Format
    scale: Tensor
    zero: Tensor
    book: Codebook | None = None
    points: Tensor | None = None

    @property
    def inverse(self) -> Tensor:
        """One over the scale, zero for the zero scale of a block without weights other than zero."""
        return torch.where(self.scale == 0, 0, 1 / self.scale)


def encode(x: Tensor, grid: Grid) -> Tensor:
    """The code of the level nearest to each value (log formats: nearest in the logarithm), uint8.

    For vectors of D weights (rows, blocks, width / D), int32 where a code has more than eight bits.
    """
    k, zero = int(grid.format.k), grid.format.zero
    if grid.points is not None:
        vectors = (x * grid.inverse).reshape(-1, grid.points.shape[1])
        search = nearest_of_e8 if grid.format.kind == "e8" else nearest_point
        codes = search(vectors, grid.points).to(torch.uint8 if len(grid.points) <= 256 else torch.int32)
        return codes.view(*x.shape[:2], x.shape[2] // vectors.shape[1])
    if zero == "zp":
        return (x * grid.inverse).round_().add_(grid.zero).clamp_(0, 2**k - 1).to(torch.uint8)
    if zero == "zpf":
        return ((x - grid.zero) * grid.inverse).round_().clamp_(0, 2**k - 1).to(torch.uint8)
    if grid.book is None:
        return _encode_log(x, grid, 2 ** (k - 1))
    return nearest(x * grid.inverse, grid.book)


def decode(codes: Tensor, grid: Grid) -> Tensor:
    """The level that each code stands for, float32; for vectors of D weights (rows, blocks, D codes)."""
    if grid.points is not None:
        vectors = grid.points.index_select(0, codes.flatten().int()).view(*codes.shape, grid.points.shape[1])
        return vectors.flatten(2) * grid.scale
    if grid.format.zero == "zp":
        return (codes - grid.zero) * grid.scale
    if grid.format.zero == "zpf":
        return codes * grid.scale + grid.zero
    if grid.book is None:
        return _decode_log(codes, grid, 2 ** (int(grid.format.k) - 1))
    if grid.book.uniform:
        return (codes + grid.book.levels[0]) * grid.scale
    return grid.book.table.index_select(0, codes.flatten().int()).view(codes.shape) * grid.scale


def nearest(x: Tensor, book: Codebook) -> Tensor:
    """The code of the level nearest to each value (between two, the one that the thresholds say), uint8, like x."""
    if book.uniform:
        low, high = float(book.levels[0]), float(book.levels[-1])
        return (x.round().clamp_(low, high) - low).to(torch.uint8)
    if len(book.thresholds) <= FEW:
        rank = torch.zeros_like(x, dtype=torch.uint8)
        for threshold in book.thresholds.tolist():
            rank += (x > threshold).view(torch.uint8)
    else:
        rank = torch.bucketize(x.contiguous(), book.thresholds, out_int32=True).to(torch.uint8)
    return rank if book.in_order else book.codes[rank.int()]


def _encode_log(x: Tensor, grid: Grid, half: int) -> Tensor:
    """Half of the codes for each sign, spread evenly over log2 of the magnitude, from the smallest to the scale."""
    steps = half - 1
    above_smallest = x.abs().log2() - grid.scale.log2() + grid.zero
    place = torch.where(grid.zero > 0, above_smallest * steps / grid.zero, steps)
    place = place.nan_to_num(0, neginf=0).round_().clamp_(0, steps)
    return torch.where(x < 0, steps - place, half + place).to(torch.uint8)


def _decode_log(codes: Tensor, grid: Grid, half: int) -> Tensor:
    positive = codes >= half
    place = torch.where(positive, codes.float() - half, half - 1 - codes.float())
    magnitude = grid.scale * torch.exp2(grid.zero * (place / (half - 1) - 1))
    return torch.where(positive, magnitude, -magnitude)

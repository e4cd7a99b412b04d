"""HQQ: the zero point of each block is moved to where the weight's own error, outliers discounted, is least."""

from dataclasses import replace

import torch
from torch import Tensor

from kbitlib.methods.calibration import InputStatistics, matrix_of
from kbitlib.quant import Format, QuantizedTensor
from kbitlib.quant.blocks import Blocks
from kbitlib.quant.grids import find_grids
from kbitlib.quant.rounding import Grid, decode, encode
from kbitlib.quant.tensor import assemble

NORM, BETA, GROWTH, ROUNDS = 0.7, 10.0, 1.01, 20  # the reference's


@torch.no_grad()
def hqq(weight: Tensor, statistics: InputStatistics | None, format: str | Format) -> QuantizedTensor:
    """Quantize a weight (out, in) with the float zero points that half-quadratic splitting finds; needs no data.

    Minimises the sum of |w - w_q|^0.7 (Badri & Shaji 2023), starting from smallest and largest value, and keeps each
    block's best zero point, in the 16 bits in which it is stored; scales stay. statistics: not used. ValueError for
    formats without a float zero point, and as `quantize`.
    """
    format = format if isinstance(format, Format) else Format.parse(format)
    if format.zero != "zpf":
        raise ValueError(f"hqq takes integers with a float zero point, such as int4-b64-zpf, not {format}")
    blocks = Blocks.of(weight.shape, format.block)
    parts = blocks.split(matrix_of(weight, None).reshape(blocks.rows, blocks.columns))
    grids, rule = find_grids(parts, format)
    grids = [_best_zero(part, grid) for part, grid in zip(parts, grids, strict=True)]
    codes = [encode(part, grid) for part, grid in zip(parts, grids, strict=True)]
    return assemble(weight, codes, grids, rule)


def _best_zero(x: Tensor, grid: Grid) -> Grid:
    """The grid of blocks x (rows, blocks, width) with the best zeros met by that sum."""
    beta, best = BETA, grid
    least = torch.full_like(grid.scale, torch.inf)
    for _ in range(ROUNDS):
        codes = encode(x, grid)
        error = x - decode(codes, grid)
        cost = error.abs().pow(NORM).sum(2, keepdim=True)
        better = cost < least
        least = torch.where(better, cost, least)
        best = replace(best, zero=torch.where(better, grid.zero, best.zero))
        outliers = error.sign() * (error.abs() - error.abs().pow(NORM - 1) / beta).relu()
        zero = (x - outliers - codes * grid.scale).mean(2, keepdim=True)
        grid = replace(grid, zero=zero.to(grid.format.zero_dtype).float())
        beta *= GROWTH
    return best

"""GPTQ: columns are quantized one after the other, and those still to come make up for the error."""

import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kbitlib.methods.calibration import InputStatistics, matrix_of
from kbitlib.quant import Format, QuantizedTensor
from kbitlib.quant.blocks import Blocks
from kbitlib.quant.codebooks import Codebook
from kbitlib.quant.grids import find_grids, fixed_point_grid
from kbitlib.quant.packing import pack
from kbitlib.quant.rounding import Grid, decode, encode
from kbitlib.quant.scales import ScaleRule
from kbitlib.quant.tensor import assemble, pair_up

LAZY = 128  # columns after which what they owe to all later ones is paid at once: the reference's block size


@torch.no_grad()
def gptq(
    weight: Tensor,
    statistics: InputStatistics,
    format: str | Format,
    *,
    act_order: bool = False,
    static_groups: bool = False,
    damping: float = 0.01,
) -> QuantizedTensor:
    """Quantize a weight (out, in) so that the layer's output on its inputs, rather than the weight, changes little.

    Frantar et al. 2022, algorithm 1. A block's grid is that of its columns as updated when the block is reached; with
    static_groups, and for row and tensor blocks, of the original weight, as learned codebooks always are. act_order
    takes columns of large input first; blocks stay consecutive columns, so it implies static_groups. damping: the share
    of H's mean diagonal added to it, raised tenfold, with a warning, until H can be factorised. Inputs that are always
    zero get weight zero. ValueError for vector formats, a damping that is not positive, and as `quantize`.
    """
    format = format if isinstance(format, Format) else Format.parse(format)
    if format.element in ("vq", "e8"):
        raise ValueError(f"gptq takes scalar formats, whose weights have a code each, not {format}")
    matrix = matrix_of(weight, statistics).clone(memory_format=torch.contiguous_format)
    hessian = statistics.hessian.to(torch.float64, copy=True)
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    matrix[:, dead] = 0
    static = static_groups or act_order or format.block <= 0
    grids = _Grids.of(matrix, format)
    order = list(range(len(hessian)))
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
        matrix, hessian = matrix[:, order], hessian[order][:, order]
    codes = _chosen_codes(matrix, _factor(hessian, damping), grids, order, static)
    return grids.assemble(weight, codes)


def _factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor U of H's inverse, H^-1 = U^T U, float32; H float64, to be damped as far as it needs."""
    if not 0 < damping < torch.inf:
        raise ValueError(f"gptq needs a finite damping above 0, not {damping}")
    mean, used = hessian.diagonal().abs().mean(), damping
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(used * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and not failed_too:
            break
        used *= 10
    if used != damping:
        warnings.warn(f"H could not be factorised with damping {damping:g}; {used:g} was used", stacklevel=4)
    return upper.float()


def _chosen_codes(matrix: Tensor, upper: Tensor, grids: "_Grids", order: list[int], static: bool) -> Tensor:
    """(out, in) codes in the original order of columns; `matrix`, columns in `order`, is used up."""
    codes, columns, size = torch.empty_like(matrix, dtype=torch.uint8), len(order), grids.blocks.size
    # All columns of a block must be up to date when it is reached, so it lies within what is lazy or starts with it.
    group = columns if static else LAZY // size * size or size
    starts = [start for i in range(0, columns, group) for start in range(i, min(i + group, columns), LAZY)]
    for start, stop in pairwise([*starts, columns]):
        errors = torch.empty_like(matrix[:, start:stop])
        for i in range(start, stop):
            if not static and i % size == 0:
                grids.update(i // size, matrix[:, i : i + size])
            grid = grids.at(order[i])
            code = encode(matrix[:, i, None, None], grid)
            error = (matrix[:, i] - decode(code, grid)[:, 0, 0]) / upper[i, i]
            matrix[:, i + 1 : stop].addr_(error, upper[i, i + 1 : stop], alpha=-1)
            errors[:, i - start], codes[:, order[i]] = error, code[:, 0, 0]
        matrix[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    return codes


@dataclass(frozen=True, eq=False)
class _Grids:
    """The grids of all blocks: scale and zero (blocks.rows, blocks.per_row); (1, 1) and no rule for fixed point."""

    format: Format
    blocks: Blocks
    scale: Tensor
    zero: Tensor
    book: Codebook | None
    rule: ScaleRule | None

    @classmethod
    def of(cls, matrix: Tensor, format: Format) -> "_Grids":
        """Those that `quantize` would take."""
        blocks = Blocks.of(matrix.shape, format.block)
        if format.kind == "fixed":
            grid = fixed_point_grid(format, matrix.device)
            return cls(format, blocks, grid.scale.view(1, 1), grid.zero.view(1, 1), grid.book, None)
        grids, rule = find_grids(blocks.split(matrix.reshape(blocks.rows, blocks.columns)), format)
        scale = Blocks.join([grid.scale for grid in grids])
        zero = Blocks.join([grid.zero.expand_as(grid.scale) for grid in grids]).clone()
        return cls(format, blocks, scale, zero, grids[0].book, rule)

    def at(self, column: int) -> Grid:
        block = column // self.blocks.size
        return Grid(self.format, self.scale[:, block, None, None], self.zero[:, block, None, None], self.book)

    def update(self, block: int, columns: Tensor) -> None:
        """Take a block's grid anew from its columns (rows, width) as they are now."""
        assert self.rule is not None
        (grid,), _ = find_grids([columns[:, None]], self.format, (self.rule, self.book))
        self.scale[:, block, None, None], self.zero[:, block, None, None] = grid.scale, grid.zero

    def assemble(self, weight: Tensor, codes: Tensor) -> QuantizedTensor:
        packed = pack(codes.flatten(), self.format.k)
        if self.rule is None:
            return QuantizedTensor(self.format, weight.shape, weight.dtype, packed)
        grids = pair_up(self.format, self.blocks, self.scale, self.zero, self.book)
        return assemble(weight, packed, grids, self.rule)

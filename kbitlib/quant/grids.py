"""The grid of each block of a tensor: range, scale, zero point and, where they are learned, the levels."""

from dataclasses import replace

import torch
from torch import Tensor

from kbitlib.quant.codebooks import Codebook, codebook, sorted_codebook
from kbitlib.quant.format import Format
from kbitlib.quant.learned import Floats, lloyd_max, quantiles
from kbitlib.quant.ranges import OCTAVES, Range, full_range, least_error_range
from kbitlib.quant.rounding import Grid
from kbitlib.quant.scales import ScaleRule
from kbitlib.quant.vector import e8_points, learn_points


def find_grids(
    parts: list[Tensor], format: Format, shared: tuple[ScaleRule, Codebook | None] | None = None
) -> tuple[list[Grid], ScaleRule]:
    """The grids of the (rows, blocks, width) float32 parts of one tensor, and the rule that made their scales.

    shared: rule and codebook of the whole tensor, where the parts are only some of its blocks. ValueError for a scale
    or minimum that does not fit its type. Not for fixed point, which has `fixed_point_grid`.
    """
    ranges = [full_range(part, format) for part in parts]
    rule, book = shared or (
        ScaleRule.of(format, [high - low for low, high in ranges]),
        fixed_book(format, parts[0].device),
    )
    if format.range == "mse":
        ranges = [_least_error(part, full, format, rule, book) for part, full in zip(parts, ranges, strict=True)]
    grids = [_grid(part, block_range, format, rule, book) for part, block_range in zip(parts, ranges, strict=True)]
    for grid, (low, high) in zip(grids, ranges, strict=True):
        rule.check(grid.scale, high - low)
        if not grid.zero.isfinite().all():
            raise ValueError(f"a block's minimum {float(low.min()):.4g} does not fit the 16-bit zero point: use -bf16")
    return (_learn_book(parts, grids) if format.learned and not shared else grids), rule


def fixed_book(format: Format, device: torch.device) -> Codebook | None:
    """The format's codebook where it does not depend on the tensor; None for learned levels, zero points and logs.

    Floating elements under float scales are divided by their largest level, so that the scale is the largest weight
    (and fits fp16 whatever the element); under E8M0 and E4M3 scales they are OCP's.
    """
    if format.learned or format.zero != "none" or format.kind in ("log", "e8"):
        return None
    return codebook(format.name, unit=format.unit_levels).to(device)


def fixed_points(format: Format, device: torch.device) -> Tensor | None:
    """The points of a lattice; None for all else."""
    return e8_points(int(format.code_bits)).to(device) if format.kind == "e8" else None


def fixed_point_grid(format: Format, device: torch.device) -> Grid:
    """The grid of fixed point: the same everywhere, nothing of it stored."""
    step, zero = torch.tensor([1 / format.fixed_steps, 0.0], dtype=torch.float32, device=device)
    return Grid(format, step, zero, fixed_book(format, device))


def _least_error(x: Tensor, full: Range, format: Format, rule: ScaleRule, book: Codebook | None) -> Range:
    octaves = OCTAVES[:1] if format.kind == "e8" else OCTAVES  # which starts near the best, and takes long if far off
    return least_error_range(x, full, lambda tried: _grid(x, tried, format, rule, book), octaves)


def _grid(x: Tensor, block_range: Range, format: Format, rule: ScaleRule, book: Codebook | None) -> Grid:
    low, high = block_range
    scale = rule.rounded(high - low)
    return Grid(format, scale, _zero(x, low, scale, format), book, fixed_points(format, x.device))


def _zero(x: Tensor, low: Tensor, scale: Tensor, format: Format) -> Tensor:
    """What stands in `Grid.zero`, as it will be stored."""
    if format.zero == "zp":
        return (-low / scale).round().nan_to_num(0).clamp(0, 2 ** int(format.k) - 1)
    if format.zero == "zpf":
        return low.to(format.zero_dtype).float()
    if format.kind == "log":
        smallest = torch.where(x == 0, torch.inf, x.abs()).amin(2, keepdim=True)
        return (scale.log2() - smallest.log2()).clamp(min=0).to(format.zero_dtype).float()
    return torch.zeros((), dtype=x.dtype, device=x.device)


def _learn_book(parts: list[Tensor], grids: list[Grid]) -> list[Grid]:
    """The grids with one codebook, rounded to the float16 it is stored in, learned from all blocks.

    For kmeans and vq, a weight counts by the square of its scale, as its error does: the tensor's error is what is
    least.
    """
    format, device = grids[0].format, parts[0].device
    if format.kind == "vq":
        return _learn_points(parts, grids)
    if format.kind == "quantile":
        levels = quantiles(_flat(parts), int(format.k))
    else:
        values = _flat([part * grid.inverse for part, grid in zip(parts, grids, strict=True)])
        scales = _flat([grid.scale.expand(part.shape) for part, grid in zip(parts, grids, strict=True)])
        levels = lloyd_max(values, (scales / (scales.max(initial=0) or 1)) ** 2, 2 ** int(format.k))
    book = sorted_codebook(torch.from_numpy(levels).half().float().to(device))
    return [replace(grid, book=book) for grid in grids]


def _learn_points(parts: list[Tensor], grids: list[Grid]) -> list[Grid]:
    length = grids[0].format.weights_per_code
    vectors = [(part * grid.inverse).reshape(-1, length) for part, grid in zip(parts, grids, strict=True)]
    scales = [grid.scale.expand(part.shape).reshape(-1, length)[:, 0] for part, grid in zip(parts, grids, strict=True)]
    scale = torch.cat(scales)
    weight = (scale / scale.max()) ** 2 if scale.any() else scale
    points = learn_points(torch.cat(vectors), weight, 2 ** int(grids[0].format.code_bits)).half().float()
    return [replace(grid, points=points) for grid in grids]


def _flat(parts: list[Tensor]) -> Floats:
    return torch.cat([part.flatten() for part in parts]).double().cpu().numpy()

"""A tensor in k bits a weight: quantize and dequantize."""

from dataclasses import dataclass, fields, replace
from math import prod

import torch
from torch import Tensor

from kbitlib.quant import native
from kbitlib.quant.blocks import Blocks
from kbitlib.quant.codebooks import Codebook, sorted_codebook
from kbitlib.quant.format import Format
from kbitlib.quant.grids import find_grids, fixed_book, fixed_point_grid, fixed_points
from kbitlib.quant.packing import pack, unpack
from kbitlib.quant.rounding import Grid, decode, encode
from kbitlib.quant.scales import ScaleRule, load

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """What is stored of a quantized tensor.

    shape, dtype: the original's. codes: packed uint8, row by row (see `packing`). scales: (rows, blocks a row) in the
    format's type; None for fixed point. outer_scales: the second level, float32, of "dq" and "e4m3" (see
    `ScaleRule.store`). zeros: packed k-bit zero points ("zp"); 16-bit, (rows, blocks a row), minima ("zpf") or, for log
    formats, log2 of a block's scale over its smallest magnitude. codebook: float16, (2^k,) levels of quantile and
    kmeans, (2^B, D) points of vqDcB.
    outlier_columns, outliers: int32 (n,) input columns that are kept in float16, (out, n), over what their codes say.
    ValueError where arrays are not what format and shape imply.
    """

    format: Format
    shape: torch.Size
    dtype: torch.dtype
    codes: Tensor
    scales: Tensor | None = None
    outer_scales: Tensor | None = None
    zeros: Tensor | None = None
    codebook: Tensor | None = None
    outlier_columns: Tensor | None = None
    outliers: Tensor | None = None

    def __post_init__(self) -> None:
        expected = self.format.layout(self.shape)
        if self.outlier_columns is not None:
            kept = len(self.outlier_columns)
            expected |= {"outlier_columns": (torch.int32, (kept,)), "outliers": (torch.float16, (self.shape[0], kept))}
        found = {name: (array.dtype, tuple(array.shape)) for name, array in self.arrays.items()}
        if found != expected:
            raise ValueError(f"{self.format} of shape {tuple(self.shape)} has arrays {expected}, not {found}")
        if len(devices := {array.device for array in self.arrays.values()}) > 1:
            raise ValueError(f"the arrays of a quantized tensor lie on one device, not on {devices}")
        columns = self.outlier_columns
        if columns is not None and len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < self.shape[1]:
            raise ValueError(f"outlier columns are 0 to {self.shape[1] - 1}, not {columns.tolist()}")

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The stored arrays by name, those that this format has."""
        stored = {field.name: getattr(self, field.name) for field in fields(self)[3:]}
        return {name: array for name, array in stored.items() if array is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """All stored bytes times 8 over the number of weights; 0 for a tensor without weights."""
        weights = prod(self.shape)
        return 8 * self.nbytes / weights if weights else 0.0

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in its own shape, in `dtype` or else the original's; computed in float32."""
        blocks, grids, dtype = self.format.blocks(self.shape), self.grids(), dtype or self.dtype
        matrix = native.dequantize(self.codes, blocks, grids, dtype)
        if matrix is None:
            coded = blocks.codes(self.format.weights_per_code)
            codes = unpack(self.codes, self.format.code_bits, coded.rows * coded.columns)
            pairs = zip(coded.split(codes.view(coded.rows, coded.columns)), grids, strict=True)
            matrix = blocks.join([decode(part, grid) for part, grid in pairs]).to(dtype)
            matrix = matrix[:, : blocks.columns - blocks.fill].contiguous()
        values = matrix.view(self.shape)
        if self.outlier_columns is not None and self.outliers is not None:
            values.flatten(1)[:, self.outlier_columns] = self.outliers.to(dtype)
        return values

    def grids(self) -> list[Grid]:
        """The grid of the whole blocks and that of the short last ones, as `Blocks.split` parts them."""
        format, device = self.format, self.codes.device
        if self.scales is None:
            return [fixed_point_grid(format, device)]
        blocks, book, points = format.blocks(self.shape), fixed_book(format, device), fixed_points(format, device)
        if self.codebook is not None and format.weights_per_code > 1:
            points = self.codebook.float()
        elif self.codebook is not None:
            book = sorted_codebook(self.codebook.float())
        scales = load(self.scales, self.outer_scales, format.scale)
        zeros = scales.new_zeros(()).expand_as(scales)
        if self.zeros is not None:
            stored = unpack(self.zeros, format.k, blocks.count) if format.zero == "zp" else self.zeros
            zeros = stored.view_as(scales).float()
        return [replace(grid, points=points) for grid in pair_up(format, blocks, scales, zeros, book)]


def quantize(tensor: Tensor, format: str | Format) -> QuantizedTensor:
    """Quantize a tensor of any shape, each weight to the nearest level of its block.

    tensor: float16, bfloat16, float32 or float64; left as it is. Codes are chosen against the scales as stored, but for
    double quantization, where as in QLoRA's reference they are chosen before the scales are quantized. ValueError for
    another type, for NaN or infinity (also beyond float32, in which all is computed), for an unknown format, or for a
    scale that its type cannot hold.
    """
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
        raise ValueError(f"only a dense torch tensor with values can be quantized, not {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"only float16, bfloat16, float32 and float64 tensors are quantized, not {tensor.dtype}")
    format = format if isinstance(format, Format) else Format.parse(format)
    blocks, book = format.blocks(tensor.shape), fixed_book(format, tensor.device)
    matrix = blocks.matrix(tensor.detach())
    if found := native.quantize(matrix, format, book):
        packed, scale, zero = found
        grids = pair_up(format, blocks, scale, scale.new_zeros(()).expand_as(scale) if zero is None else zero, book)
        return assemble(tensor, packed, grids, ScaleRule(format.scale, format.extent, scale.new_ones(())))
    values = _checked(matrix)
    if format.kind == "fixed":
        grids = [fixed_point_grid(format, tensor.device)]
        return QuantizedTensor(format, tensor.shape, tensor.dtype, _encoded(values, blocks, grids))
    grids, rule = find_grids(blocks.split(values), format)
    return assemble(tensor, _encoded(values, blocks, grids), grids, rule)


def pair_up(format: Format, blocks: Blocks, scales: Tensor, zeros: Tensor, book: Codebook | None) -> list[Grid]:
    """The grids of scales and zeros (rows, blocks a row), as `Blocks.split` parts the blocks."""
    pairs = zip(blocks.split_blocks(scales), blocks.split_blocks(zeros), strict=True)
    return [Grid(format, scale, zero, book) for scale, zero in pairs]


def _encoded(values: Tensor, blocks: Blocks, grids: list[Grid]) -> Tensor:
    """The packed codes of a matrix on its grids."""
    packed = native.encode(values, blocks, grids)
    if packed is not None:
        return packed
    parts = zip(blocks.split(values), grids, strict=True)
    return _packed([encode(part, grid) for part, grid in parts], grids[0].format)


def assemble(tensor: Tensor, codes: Tensor | list[Tensor], grids: list[Grid], rule: ScaleRule) -> QuantizedTensor:
    """The QuantizedTensor of a tensor's shape and dtype from codes, packed or however chosen for each part, on grids
    made by `find_grids`."""
    format, book = grids[0].format, grids[0].book
    scales, outer = rule.store(Blocks.join([grid.scale for grid in grids]))
    zeros = None
    if format.zero == "zp":
        zeros = _packed([grid.zero.to(torch.uint8) for grid in grids], format)
    elif format.zero == "zpf" or format.kind == "log":
        zeros = Blocks.join([grid.zero for grid in grids]).to(format.zero_dtype)
    learned = grids[0].points if book is None else book.levels
    levels = learned.half() if format.learned and learned is not None else None
    packed = _packed(codes, format) if isinstance(codes, list) else codes
    return QuantizedTensor(format, tensor.shape, tensor.dtype, packed, scales, outer, zeros, levels)


def _packed(codes: list[Tensor], format: Format) -> Tensor:
    return pack(Blocks.join(codes).flatten(), format.code_bits)


def _checked(tensor: Tensor) -> Tensor:
    """The tensor in float32, detached; ValueError for what is not finite there."""
    values = tensor.detach().float()
    if values.numel() and not torch.stack(values.aminmax()).isfinite().all():
        wrong = int((~values.isfinite()).sum())
        raise ValueError(f"{wrong} of {values.numel()} values are NaN, infinite or beyond float32: cannot be quantized")
    return values

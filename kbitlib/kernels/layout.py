"""The layout of k-bit weights that products read: tiles of 16 rows and 32 columns.

What is notable: one layout for CPU and GPU and for every k. The rows of a tile lie side by side, a 32-bit word each, so
that a vector register, or a warp's load, holds the same columns of 16 rows: levels are looked up and multiplied without
sums across lanes. Codes are split into parts of 4, 2 and 1 bits (8 stay whole), which fill words without a gap: exactly
k bits a weight.

A part of width p takes p words a row. Column 4 (8/p w + i) + c of a tile, c = 0..3, stands in word w at bit 8 c + p i:
the four columns of a step lie in the four bytes of a word, and a shift by p i brings them to the bytes' low ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kbitlib.quant import Format, QuantizedTensor
from kbitlib.quant.blocks import TENSOR
from kbitlib.quant.codebooks import codebook
from kbitlib.quant.format import OUTER_BLOCK
from kbitlib.quant.packing import packed_bytes, unpack

ROWS, COLUMNS = 16, 32  # of a tile
PARTS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # widths, low bits first
AT_ONCE = 2**20  # weights converted at a time: what is between two forms stays small beside them


class Stored(NamedTuple):
    """What the operator is told of a weight, in its order: the fields of `PackedWeight`, unchecked."""

    codes: Tensor
    scales: Tensor
    scale_levels: Tensor | None
    outer: Tensor | None
    zeros: Tensor | None
    levels: Tensor
    unit: float
    gain: float
    block: int
    rows: int
    columns: int


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight (rows, columns) as products read it: ``unit * (scale * levels[code] + minimum)`` or, with integer zero
    points, ``unit * scale * (levels[code] - zero)``.

    codes: int32 (groups of 16 rows, tiles of 32 columns, k, 16). scales: (groups, blocks a row, 16) float32, float16 or
    bfloat16; uint8 where they count scale_levels (256,) float32; (1,) where one serves all. outer: float32, the second
    level of double quantization, as `QuantizedTensor.outer_scales`. zeros: int16 (groups, blocks, k), bit r of mask j
    is bit j of row r's zero point; or 16-bit floats (groups, blocks, 16), minima. levels: float32 (2^k,). gain: what
    levels are multiplied with before they are rounded to bfloat16, and divided by after. block: columns a scale serves.
    ValueError for tensors of another type, shape, order in memory or device.
    """

    codes: Tensor
    scales: Tensor
    scale_levels: Tensor | None
    outer: Tensor | None
    zeros: Tensor | None
    levels: Tensor
    unit: float
    gain: float
    block: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        groups, tiles = -(-self.rows // ROWS), -(-self.columns // COLUMNS)
        k = self.codes.shape[2] if self.codes.ndim == 4 else 0
        blocks = -(-self.columns // self.block) if self.block > 0 else 0
        by_block = groups, blocks, ROWS
        small = torch.float32, torch.float16, torch.bfloat16
        expected: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]] = {
            "codes": ((torch.int32,), (groups, tiles, k, ROWS)),
            "scales": (small if self.scale_levels is None else (torch.uint8,), by_block),
            "scale_levels": ((torch.float32,), (256,)),
            "outer": ((torch.float32,), (1 + -(-self.rows * blocks // OUTER_BLOCK),)),
            "zeros": ((torch.int16, *small[1:]), by_block),
            "levels": ((torch.float32,), (2**k,)),
        }
        if self.scales.shape == (1,) and self.outer is None:
            expected["scales"] = expected["scales"][0], (1,)
        if self.zeros is not None and self.zeros.dtype == torch.int16:
            expected["zeros"] = (torch.int16,), (groups, blocks, k)
        for name, tensor in self.tensors.items():
            dtypes, shape = expected[name]
            if tensor.dtype not in dtypes or tensor.shape != shape or not tensor.is_contiguous():
                found = f"{tensor.dtype} {tuple(tensor.shape)}{'' if tensor.is_contiguous() else ', not contiguous'}"
                raise ValueError(
                    f"{name} of a weight ({self.rows}, {self.columns}) are {dtypes[0]} {shape}, not {found}"
                )
            if tensor.device != self.codes.device:
                raise ValueError(f"{name} lie on {tensor.device}, the codes on {self.codes.device}")
        if k not in PARTS or (self.columns and self.block < 1) or not self.gain > 0:
            raise ValueError(f"no weight has k = {k}, blocks of {self.block} and the gain {self.gain}")

    @property
    def stored(self) -> Stored:
        """The fields in the operator's order."""
        return Stored(
            self.codes, self.scales, self.scale_levels, self.outer, self.zeros, self.levels, self.unit, self.gain,
            self.block, self.rows, self.columns,
        )  # fmt: skip

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, those that this weight has."""
        return {name: value for name, value in self.stored._asdict().items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: what the format stores, the padding of the last tiles, and tables of levels."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def counted(self) -> bool:
        """Whether levels are integers one apart, so that a code and the lowest of them say all."""
        return bool((self.levels.diff() == 1).all() and self.levels[0] == self.levels[0].round())

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, **moved)


def obstacle(format: Format, columns: int) -> str:
    """Why a weight of a format is not packed for products, in words; empty where it is."""
    if format.weights_per_code > 1 or format.kind == "log" or format.k % 1:
        reasons = {"log": "levels of its own in every block", "ternary": "five codes a byte"}
        return f"{format} has {reasons.get(format.kind, 'vectors for levels')}"
    if 0 < format.block < columns and format.block % COLUMNS and format.block != COLUMNS // 2:
        return f"{format} has blocks of {format.block} weights; products take 16 and multiples of 32"
    return ""


def pack(weight: QuantizedTensor) -> PackedWeight:
    """A quantized matrix (out, in) as products read it, on its device; codes, scales and zeros stay what they are.

    ValueError where the format has no codebook times a scale, where its blocks do not fit tiles (`obstacle` says why),
    for a tensor of another rank than two, and where outlier columns are kept apart.
    """
    format = weight.format
    if len(weight.shape) != 2 or weight.outlier_columns is not None:
        what = "outlier columns" if weight.outlier_columns is not None else f"the shape {tuple(weight.shape)}"
        raise ValueError(f"only a matrix without outlier columns is packed for products; this one has {what}")
    rows, columns = weight.shape
    if reason := obstacle(format, columns):
        raise ValueError(f"{reason}, so it cannot be packed for products")
    k, blocks = int(format.k), format.blocks(weight.shape)
    grid = weight.grids()[0]
    levels = torch.arange(2.0**k, device=weight.codes.device) if grid.book is None else grid.book.table.nan_to_num()
    levels = F.pad(levels.float(), (0, 2**k - len(levels)))
    scales, scale_levels, outer, unit = _scales(weight)
    zeros = None
    if weight.zeros is not None:
        stored = unpack(weight.zeros, k, blocks.count) if format.zero == "zp" else weight.zeros
        each = (1, 1) if scales.numel() == 1 else (blocks.rows, blocks.per_row)
        stored = stored.view(each) if stored.numel() else stored.new_zeros(each)
        scales, stored = (_by_group(part, rows)[:, :columns] for part in (scales.view(each), stored))  # none of none
        zeros = _masks(stored, k) if format.zero == "zp" else stored
    elif scales.ndim > 1:
        scales = _by_group(scales, rows)
    codes = pack_codes(weight.codes, k, rows, columns)
    some = codes[:: 1 + rows * columns // AT_ONCE]
    return PackedWeight(
        codes=codes,
        scales=scales,
        scale_levels=scale_levels,
        outer=outer,
        zeros=zeros,
        levels=levels,
        unit=unit,
        gain=best_gain(levels, unpack_codes(some, min(rows, ROWS * len(some)), columns), columns),
        block=columns if format.block <= 0 else min(format.block, columns),
        rows=rows,
        columns=columns,
    )


def pack_codes(codes: Tensor, k: int, rows: int, columns: int) -> Tensor:
    """Codes as `QuantizedTensor` stores them to tiles: int32 (groups, tiles a row, k, 16)."""
    groups, tiles = -(-rows // ROWS), -(-columns // COLUMNS)
    packed = torch.empty(groups, tiles, k, ROWS, dtype=torch.int32, device=codes.device)
    step = max(1, AT_ONCE // max(1, ROWS * columns))  # groups at a time; 16 rows of codes are whole bytes
    for first in range(0, groups, step):
        some = min(rows - ROWS * first, ROWS * step)
        start = ROWS * first * columns * k // 8
        part = unpack(codes[start : start + packed_bytes(some * columns, k)], k, some * columns).view(some, columns)
        part = F.pad(part, (0, tiles * COLUMNS - columns, 0, -some % ROWS))
        packed[first : first + step] = _tiles(part.view(-(-some // ROWS), ROWS, tiles, COLUMNS), k)
    return packed


def _tiles(codes: Tensor, k: int) -> Tensor:
    """(groups, 16, tiles, 32) uint8 to (groups, tiles, k, 16) int32."""
    words, low = [], 0
    for width in PARTS[k]:
        bits = (codes >> low & 2**width - 1).unflatten(-1, (width, 8 // width, 4))
        joined = bits[..., 0, :].clone()
        for i in range(1, 8 // width):
            joined |= bits[..., i, :] << width * i
        words.append(joined.view(torch.int32).squeeze(-1))
        low += width
    return torch.cat(words, -1).permute(0, 2, 3, 1)


def unpack_codes(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `pack_codes`, one code a byte: uint8 (rows, columns)."""
    groups, tiles, k, _ = packed.shape
    words = packed.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)  # (groups, 16, tiles, k)
    four = words.view(torch.uint8).view(groups, ROWS, tiles, k, 1, 4)
    codes = torch.zeros(groups, ROWS, tiles, COLUMNS, dtype=torch.uint8, device=packed.device)
    first = low = 0
    for width in PARTS[k]:
        shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)[:, None]
        codes |= (four[:, :, :, first : first + width] >> shifts & 2**width - 1).flatten(-3) << low
        first, low = first + width, low + width
    return codes.view(groups * ROWS, tiles * COLUMNS)[:rows, :columns]


def _scales(weight: QuantizedTensor) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
    """Scales (rows, blocks) as stored, as bytes where they have eight bits, or (1,) where one serves all; what bytes
    count; the second level of double quantization; and what all scales have in common."""
    format, stored, device = weight.format, weight.scales, weight.codes.device
    if stored is None:  # fixed point
        return torch.ones(1, dtype=torch.float32, device=device), None, None, 1 / format.fixed_steps
    if format.block == TENSOR:
        scale = weight.grids()[0].scale.reshape(-1)
        return scale if len(scale) else scale.new_zeros(1), None, None, 1.0
    if format.scale == "dq":
        return stored, codebook("dynamic8").levels.to(device), weight.outer_scales, 1.0
    if format.scale not in ("e8m0", "e4m3"):
        return stored, None, None, 1.0
    every = torch.arange(256, dtype=torch.uint8, device=device).view(stored.dtype).float().nan_to_num()
    unit = 1.0 if weight.outer_scales is None else float(weight.outer_scales)
    return stored.view(torch.uint8), every, None, unit


def _by_group(values: Tensor, rows: int) -> Tensor:
    """(rows, blocks), or (1, 1) that serves all, to (groups, blocks, 16)."""
    values = F.pad(values.expand(rows, -1), (0, 0, 0, -rows % ROWS))
    return values.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def _masks(zeros: Tensor, k: int) -> Tensor:
    """(groups, blocks, 16) uint8 to the bits of each place: int16 (groups, blocks, k)."""
    places = torch.arange(k, dtype=torch.uint8, device=zeros.device)[:, None]
    rows = torch.arange(ROWS, device=zeros.device)
    masks = ((zeros[..., None, :] >> places & 1).int() << rows).sum(-1)
    return masks.to(torch.uint16).view(torch.int16)


def best_gain(levels: Tensor, codes: Tensor, columns: int) -> float:
    """The factor, 1 to 2, after which levels lose least in being rounded to bfloat16.

    codes: those of a weight, or of a part of it, for how often each level is taken. What a level loses counts in its
    square; what levels lose on average counts once a column more, as inputs of one sign add it up.
    """
    often = torch.bincount(codes.flatten(), minlength=len(levels)).double().cpu()
    exact, gains = levels.double().cpu(), 2 ** (torch.arange(4096, dtype=torch.float64, device="cpu") / 4096)
    raised = exact * gains[:, None]
    lost = (raised.bfloat16().double() - raised) / gains[:, None]
    return float(gains[(lost.square() @ often + columns * (lost @ often).square() / max(1, codes.numel())).argmin()])

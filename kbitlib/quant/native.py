"""The CPU path in C: `native.c`, compiled once with the machine's C compiler and kept in the user's cache.

Results are bit for bit those of the PyTorch path, which does the work where there is no compiler (said once, in a
warning), on other devices, and for formats that need more than a scale, a zero point and a codebook.
"""

import ctypes
from functools import cache
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kbitlib.quant.blocks import Blocks
from kbitlib.quant.codebooks import Codebook
from kbitlib.quant.compiled import load
from kbitlib.quant.format import Format
from kbitlib.quant.packing import packed_bytes
from kbitlib.quant.rounding import Grid

SOURCE = Path(__file__).with_name("native.c")
ALWAYS = ("-O3", "-ffp-contract=off")
# The constants of native.c.
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SCALES = {"fp32": 0, "fp16": 1, "bf16": 2, "e8m0": 3, "dq": 0}
ABSMAX, SIGNED_ABSMAX, MEAN, WITH_ZERO, ENDS = range(1, 6)
INTEGERS, ZERO_POINT, MINIMUM, LEVELS = range(4)
FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever PyTorch's defaults are set to
CHUNK = 4096  # weights a row where one scale serves a whole tensor


class Job(ctypes.Structure):
    """One matrix and what is to be done to it: the fields of native.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "out", "codes", "scale", "zero", "levels", "order")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "block")),
        *((name, ctypes.c_int32) for name in ("dtype", "range", "scale_type", "kind", "bits", "low", "high")),
        *((name, ctypes.c_int32) for name in ("zero_type", "threads", "emax")),
        ("extent", ctypes.c_float),
    )

    @classmethod
    def of(cls, format: Format, blocks: Blocks, scale: Tensor, zero: Tensor | None, book: Codebook | None) -> "Job":
        """A job with the block structure, and what a code means, filled in."""
        job = cls(rows=blocks.rows, columns=blocks.columns, block=blocks.size, threads=torch.get_num_threads())
        job.bits = 0 if format.kind == "ternary" else int(format.k)
        job.high = 2 ** int(format.k) - 1
        job.kind = {"zp": ZERO_POINT, "zpf": MINIMUM}.get(format.zero, LEVELS)
        if book is not None and book.uniform:
            job.kind, job.low, job.high = INTEGERS, int(book.levels[0]), int(book.levels[-1])
        job.point("scale", scale)
        if zero is not None:
            job.point("zero", zero)
        return job

    def point(self, name: str, array: Tensor) -> None:
        """Let a field point to an array, which lives as long as the job."""
        setattr(self, name, array.data_ptr())
        setattr(self, f"_{name}", array)

    def run(self, function: str) -> int:
        """0, or 1 where something does not fit that the PyTorch path will name; raises MemoryError."""
        failed: int = getattr(library(), function)(ctypes.byref(self))
        if failed > 1:
            raise MemoryError("the C path found no memory for a row of codes")
        return failed


def quantize(matrix: Tensor, format: Format, book: Codebook | None) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """A matrix (rows, columns) in one pass over it: packed codes, and float32 scales and zeros (rows, blocks a row).

    book: the format's, None with a zero point. None where this path does not take the format, or where the PyTorch path
    has an error to raise.
    """
    plain = format.range == "absmax" and format.block >= 0 and format.scale in SCALES and not format.learned
    if not plain or not _takes(matrix, format):
        return None
    blocks = Blocks.of(matrix.shape, format.block)
    scale = torch.empty(blocks.rows, blocks.per_row, **FLOAT32)
    zero = torch.empty_like(scale) if format.zero != "none" else None
    job = Job.of(format, blocks, scale, zero, book)
    spans = {"ints": SIGNED_ABSMAX, "binary": MEAN, "ternary": MEAN}
    job.range = {"zp": WITH_ZERO, "zpf": ENDS}.get(format.zero) or spans.get(format.kind, ABSMAX)
    job.scale_type, job.zero_type, job.extent = SCALES[format.scale], TYPES[format.zero_dtype], format.extent
    job.emax = ceil(log2(abs(format.extent))) - 1
    codes = _codes(job, matrix, format, book)
    return None if codes is None else (codes, scale, zero)


def encode(matrix: Tensor, blocks: Blocks, grids: list[Grid]) -> Tensor | None:
    """The packed codes of a matrix on given grids; None where this path does not take the format."""
    if not _takes(matrix, grids[0].format):
        return None
    return _codes(_on_grids(blocks, grids), matrix, grids[0].format, grids[0].book)


def dequantize(codes: Tensor, blocks: Blocks, grids: list[Grid], dtype: torch.dtype) -> Tensor | None:
    """The matrix (rows, columns) that packed codes stand for; None where this path does not take the format."""
    if dtype not in TYPES or not _takes(codes, grids[0].format):
        return None
    job, book = _on_grids(blocks, grids), grids[0].book
    if book is not None:  # even levels too: as exact in a table as counted
        job.kind, table = LEVELS, book.table
    else:
        table = torch.arange(job.high + 1, **FLOAT32)
    job.point("levels", torch.nn.functional.pad(table, (0, 256 - len(table))))
    out = torch.empty(blocks.rows, blocks.columns, dtype=dtype, device="cpu")
    job.point("out", out)
    job.point("codes", codes.resolve_neg().contiguous())
    job.dtype = TYPES[dtype]
    job.run("kbit_dequantize")
    return out


def _takes(tensor: Tensor, format: Format) -> bool:
    here = tensor.device.type == "cpu" and tensor.numel() > 0 and (tensor.dtype in TYPES or tensor.dtype == torch.uint8)
    return here and format.kind not in ("log", "vq", "e8") and library() is not None


def _on_grids(blocks: Blocks, grids: list[Grid]) -> Job:
    """A job for given scales and zeros; one scale for all is given to each of many rows, which threads can share."""
    format, weights = grids[0].format, blocks.rows * blocks.columns
    if blocks.count == 1 and weights % CHUNK == 0:
        blocks = Blocks.of((weights // CHUNK, CHUNK), 0)
    scale, zero = (
        Blocks.join([one.expand(blocks.rows, *(one.shape[1:] or (1, 1))) for one in each]).contiguous()
        for each in ([grid.scale for grid in grids], [grid.zero for grid in grids])
    )
    return Job.of(format, blocks, scale, zero if format.zero != "none" else None, grids[0].book)


def _codes(job: Job, matrix: Tensor, format: Format, book: Codebook | None) -> Tensor | None:
    codes = torch.empty(packed_bytes(matrix.numel(), format.k), dtype=torch.uint8, device="cpu")
    job.point("codes", codes)
    job.point("values", matrix.resolve_neg().contiguous())
    job.dtype = TYPES[matrix.dtype]
    if job.kind == LEVELS and book is not None:
        job.point("levels", search_tree(book.thresholds, job.bits))
        if not book.in_order:
            job.point("order", torch.nn.functional.pad(book.codes, (0, 256 - len(book.codes))))
    return None if job.run("kbit_quantize") else codes


def search_tree(thresholds: Tensor, depth: int) -> Tensor:
    """Ascending thresholds as a binary search tree, (256,) float32: node n's children are nodes 2n and 2n+1."""
    ascending = torch.full((2**depth - 1,), torch.inf, **FLOAT32)
    ascending[: len(thresholds)] = thresholds
    tree = torch.zeros(256, **FLOAT32)
    for d in range(depth):
        tree[2**d : 2 ** (d + 1)] = ascending[2 ** (depth - 1 - d) - 1 :: 2 ** (depth - d)]
    return tree


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None, with a warning, where there is no compiler for it."""
    return load(SOURCE, ALWAYS, ("kbit_quantize", "kbit_dequantize"), "quantization runs in PyTorch, slower")

"""The CPU's products in C: `matmul.c`, compiled once with the machine's C compiler and kept in the user's cache.

Without a compiler the plain PyTorch form does the work, which is said once, in a warning.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kbitlib.kernels.layout import COLUMNS, ROWS, Stored
from kbitlib.quant.compiled import load

SOURCE = Path(__file__).with_name("matmul.c")
FLAGS = ("-O3", "-fno-tree-pre", "-ffp-contract=fast")
# The constants of matmul.c.
SCALES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
NONE, MASKS, MINIMA = range(3)
FLOAT32, BFLOAT16, IN_VECTORS = 1, 2, 4

DECODED_AT_ONCE = 2**25  # bytes of the weight


class Product(ctypes.Structure):
    """The fields of matmul.c, those that are found there left out."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out", "codes", "scales", "scale_levels", "outer", "zeros")),
        *((name, ctypes.c_void_p) for name in ("levels", "x_scale")),
        *((name, ctypes.c_float) for name in ("unit", "gain")),
        *((name, ctypes.c_int64) for name in ("batch", "rows", "columns", "block")),
        *((name, ctypes.c_int32) for name in ("k", "width", "scale_type", "one_scale", "zero_kind", "zero_type")),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("tiles", "blocks")),
        ("sums", ctypes.c_void_p),
        ("offset", ctypes.c_float),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None, with a warning, where there is no compiler for it."""
    return load(
        SOURCE, FLAGS, ("kbit_linear", "kbit_decode", "kbit_abilities"), "products decode the weight in PyTorch, slowly"
    )


def available() -> bool:
    """Whether products run in C."""
    return library() is not None


@cache
def abilities() -> int:
    """What the compiled library can do: types of x that it takes as they are, and whether it is in vector code."""
    found = library()
    return int(found.kbit_abilities()) if found else 0


def many(dtype: torch.dtype, block: int) -> float:
    """From how many rows of input on the weight is decoded and PyTorch multiplies: where that was measured faster.

    Sums are scaled once a block, so shorter blocks cost more a row.
    """
    if not abilities() & IN_VECTORS:
        return 32
    return {16: 128, 32: 224}.get(block, 384) if dtype == torch.bfloat16 else math.inf


def path(block: int) -> str:
    """What a product on the CPU runs in."""
    if not available():
        return "PyTorch: no C compiler compiles the kernels"
    if not abilities() & IN_VECTORS:
        kind = "C without AVX-512, which the processor has not with VBMI and VNNI"
    else:
        kind = "AVX-512 with BF16" if abilities() & BFLOAT16 else "AVX-512 in float32, for the processor has no BF16"
    rows = many(torch.bfloat16, block)
    return f"{kind}; from {rows:g} rows of bfloat16 on, PyTorch with the weight decoded"


def linear(x: Tensor, weight: Stored, activation_bits: int) -> Tensor:
    """The operator, x (..., columns) to (..., rows) in the type of x; raises MemoryError."""
    rows, columns = weight.rows, weight.columns
    batch = x.numel() // columns if columns else 0
    if batch == 0 or rows == 0:
        return x.new_zeros(*x.shape[:-1], rows)
    as_it_is = activation_bits == 16 and x.dtype == torch.bfloat16 and abilities() & BFLOAT16
    inputs = x if as_it_is else x.float()
    if activation_bits == 16 and batch >= many(inputs.dtype, weight.block):
        return _decoded_first(inputs, weight).to(x.dtype)
    if columns % COLUMNS:
        inputs = F.pad(inputs, (0, -columns % COLUMNS))
    inputs = inputs.contiguous()
    out = torch.empty(*x.shape[:-1], rows, dtype=inputs.dtype, device="cpu")
    product = _product(out, weight, 1 if activation_bits == 8 else inputs.itemsize)
    product.x, product.batch = inputs.data_ptr(), batch
    _run("kbit_linear", product)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def decode(weight: Stored) -> Tensor:
    """The operator: the weight (rows, columns), float32; raises MemoryError."""
    return _decoded_rows(weight, 0, weight.rows, torch.float32)


def _decoded_first(x: Tensor, weight: Stored) -> Tensor:
    """The product by PyTorch, of some decoded rows of the weight at a time, so that they take little memory."""
    step = max(1, DECODED_AT_ONCE // (ROWS * weight.columns * x.itemsize)) * ROWS
    ranges = [(first, min(first + step, weight.rows)) for first in range(0, weight.rows, step)]
    parts = [F.linear(x, _decoded_rows(weight, first, last, x.dtype)) for first, last in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _decoded_rows(weight: Stored, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Rows of the weight from `first`, a multiple of 16, to `last`, in float32 or bfloat16."""
    out = torch.empty(last - first, weight.columns, dtype=dtype, device="cpu")
    if out.numel():
        _run("kbit_decode", _product(out, weight, out.itemsize), first, last)
    return out


def _product(out: Tensor, weight: Stored, width: int) -> Product:
    """The job of one row of x, which is still to be named."""
    codes, scales, scale_levels, outer, zeros, levels, unit, gain, block, rows, columns = weight
    zero_kind, zero_type = NONE, 0
    if zeros is not None:
        zero_kind, zero_type = (MASKS, 0) if zeros.dtype == torch.int16 else (MINIMA, SCALES[zeros.dtype])
    arrays = (out, codes, scales, scale_levels, outer, zeros, levels, None)
    return Product(
        None, *(None if array is None else array.data_ptr() for array in arrays), unit, gain, 1, rows, columns, block,
        codes.shape[2], width, SCALES[scales.dtype], scales.numel() == 1, zero_kind, zero_type, torch.get_num_threads(),
    )  # fmt: skip


def _run(function: str, product: Product, *numbers: int) -> None:
    found = library()
    assert found is not None
    if getattr(found, function)(ctypes.byref(product), *map(ctypes.c_int64, numbers)):
        raise MemoryError("a product found no memory for its sums")

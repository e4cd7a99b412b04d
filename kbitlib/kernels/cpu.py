"""The CPU's products in C: `matmul.c`, compiled once with the machine's C compiler and kept in the user's cache.

Without a compiler the plain PyTorch form does the work, which is said once, in a warning.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kbitlib.kernels.layout import COLUMNS
from kbitlib.quant.compiled import load

SOURCE = Path(__file__).with_name("matmul.c")
FLAGS = ("-O3", "-fno-tree-pre", "-ffp-contract=fast")
# The constants of matmul.c.
SCALES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
NONE, MASKS, MINIMA = range(3)
FLOAT32, BFLOAT16, IN_VECTORS = 1, 2, 4


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
    return load(SOURCE, FLAGS, ("kbit_linear", "kbit_abilities"), "products decode the weight in PyTorch, slowly")


def available() -> bool:
    """Whether products run in C."""
    return library() is not None


@cache
def abilities() -> int:
    """What the compiled library can do: types of x that it takes as they are, and whether it is in vector code."""
    found = library()
    return int(found.kbit_abilities()) if found else 0


def path() -> str:
    """What a product on the CPU runs in."""
    if not available():
        return "PyTorch: there is no C compiler"
    if not abilities() & IN_VECTORS:
        return "plain C: the processor has no AVX-512 with VBMI and VNNI"
    return "AVX-512 with BF16" if abilities() & BFLOAT16 else "AVX-512 in float32: the processor has no BF16"


def linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    scale_levels: Tensor | None,
    outer: Tensor | None,
    zeros: Tensor | None,
    levels: Tensor,
    unit: float,
    gain: float,
    block: int,
    rows: int,
    columns: int,
    activation_bits: int,
) -> Tensor:
    """The operator, x (..., columns) to (..., rows) in the type of x; raises MemoryError."""
    as_it_is = activation_bits == 16 and x.dtype == torch.bfloat16 and abilities() & BFLOAT16
    inputs = x if as_it_is else x.float()
    if columns % COLUMNS:
        inputs = F.pad(inputs, (0, -columns % COLUMNS))
    inputs = inputs.contiguous()
    out = torch.empty(*x.shape[:-1], rows, dtype=inputs.dtype, device="cpu")
    if out.numel() == 0 or columns == 0:
        return out.zero_().to(x.dtype)
    zero_kind, zero_type = NONE, 0
    if zeros is not None:
        zero_kind, zero_type = (MASKS, 0) if zeros.dtype == torch.int16 else (MINIMA, SCALES[zeros.dtype])
    product = Product(
        inputs.data_ptr(),
        out.data_ptr(),
        codes.data_ptr(),
        scales.data_ptr(),
        None if scale_levels is None else scale_levels.data_ptr(),
        None if outer is None else outer.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        levels.data_ptr(),
        None,
        unit,
        gain,
        out.numel() // rows,
        rows,
        columns,
        block,
        codes.shape[2],
        1 if activation_bits == 8 else inputs.itemsize,
        SCALES[scales.dtype],
        scales.numel() == 1,
        zero_kind,
        zero_type,
        torch.get_num_threads(),
    )
    found = library()
    assert found is not None
    if found.kbit_linear(ctypes.byref(product)):
        raise MemoryError("a product found no memory for its sums")
    return out if out.dtype == x.dtype else out.to(x.dtype)

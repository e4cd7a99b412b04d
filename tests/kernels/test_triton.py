"""The GPU's kernels are right: under Triton's interpreter, which needs no GPU.

Triton decides at its import whether kernels are interpreted, so the tests that need that (`check_...`) run in a process
of their own.
"""

import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from kbitlib.kernels import PackedWeight, pack  # noqa: E402
from kbitlib.kernels import triton as kernels  # noqa: E402
from kbitlib.kernels.layout import best_gain, unpack_codes  # noqa: E402
from kbitlib.kernels.triton import tuning  # noqa: E402
from kbitlib.kernels.triton.matrix import CENTRED  # noqa: E402
from kbitlib.quant import quantize  # noqa: E402

WIDTHS = range(1, 9)
# Relative error that a product may have: for 16-bit types before and after its rounding (1.65e-3 of bfloat16's own).
ALLOWED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2.5e-3}
FORMATS = [
    "int4-b64-zp", "int8-b32-zp", "int3-b128-zp-bf16", "int4-b32-zpf", "int2-row-zpf-bf16", "nf4-b64-dq", "nf4-b16-dq",
    "mxfp4", "nvfp4", "nf4-b128-fp32", "nf3-row", "nf5-tensor", "int8-row-fp32", "kmeans3-b64-bf16", "dynamic8-b256",
    "q2.2", "e4m3-b32-e8m0", "binary-b16", "nf2-b16", "int5-b96-zp",
]  # fmt: skip


def test_kernels_under_the_interpreter() -> None:
    options = "-q", "-p", "no:cacheprovider", "-o", "python_functions=check_*"
    command = [sys.executable, "-m", "pytest", *options, __file__]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    print(done.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def bfloat16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as uint16, cuts instead of rounding, and multiplies those integers in a dot.

    That of Triton 3.6 also makes an index of an array in a way that NumPy 2.4 forbids.
    """
    if not tuning.INTERPRETED:
        return
    tl = triton.language
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot, patch = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, kind)
        values = torch.from_numpy(np.atleast_1d(source.data)).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(values.reshape(source.data.shape), tl.bfloat16)

    def multiplied(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [cast(self, part, tl.float32) if part.dtype.scalar == tl.bfloat16 else part for part in (a, b)]
        return dot(self, *wide, *rest)

    for name in ("cast_impl", "create_fp_trunc"):
        monkeypatch.setattr(InterpreterBuilder, name, rounded)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", multiplied)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


# GROUPS, TILES and IN_TILE of the configurations, with the rows of x of the first that has them
TENSOR_CORE_SHAPES = {(shape[0], *shape[2:4]): shape[1] for shape in reversed(tuning.MATRIX_SHAPES)}


def product(x: Tensor, w: PackedWeight, activation_bits: int = 16) -> Tensor:
    return kernels.linear(x, w.stored, activation_bits)


def error(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


def compare(format: str, rows: int, columns: int, batch: int, dtype: torch.dtype, activation_bits: int = 16) -> None:
    """A product is as near to float64's as `ALLOWED` says, of the weight that `quant` decodes."""
    torch.manual_seed(rows + columns + batch)
    quantized = quantize(torch.randn(rows, columns) * 0.3, format)
    x = torch.randn(batch, columns).to(dtype)
    y = product(x, pack(quantized), activation_bits)
    assert y.dtype == dtype
    assert y.shape == (batch, rows)
    seen = x if activation_bits == 16 else quantize(x, "int8-row-fp32").dequantize(torch.float32)
    found = error(y, seen.double() @ quantized.dequantize(torch.float64).T)
    assert found <= ALLOWED[dtype], f"{format} {rows}x{columns} batch {batch} {dtype}: {found:.2e}"


@pytest.mark.parametrize(("batch", "dtype"), [(1, torch.bfloat16), (3, torch.float32), (9, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("k", WIDTHS)
def check_every_width(k: int, batch: int, dtype: torch.dtype) -> None:
    compare(f"nf{k}" if k > 1 else "binary", 20, 160, batch, dtype)


@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("format", FORMATS)
def check_every_kind_of_scale_zero_and_block(format: str, batch: int) -> None:
    dtype = torch.float32 if "b16" in format or "zp" in format else torch.float16
    compare(format, 19, 288, batch, dtype)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (17, 33), (48, 100), (31, 130)])
@pytest.mark.parametrize("batch", [1, 8, 33])
def check_odd_shapes(rows: int, columns: int, batch: int) -> None:
    format = "nf3-b32" if batch % 2 else "int6-b64-zp"
    compare(format, rows, columns, batch, torch.float32)


@pytest.mark.parametrize("k", range(2, 9))
def check_integers_without_a_table(k: int) -> None:
    assert kernels._integers_among(pack(quantize(torch.randn(2, 64), f"int{k}")).levels) == CENTRED
    for batch in (2, 16):
        compare(f"int{k}" if k % 2 else f"int{k}-b32-zp", 16, 128, batch, torch.bfloat16)


@pytest.mark.parametrize(
    "format",
    ["int2", "int3-b128", "int4", "int8", "int8-b64-zp", "int4-b16", "int4-b32-zpf", "int5-row", "int4n-b64-dq"],
)
def check_eight_bit_activations(format: str) -> None:
    compare(format, 40, 192, 3, torch.float32, activation_bits=8)
    compare(format, 17, 77, 18, torch.bfloat16, activation_bits=8)


@pytest.mark.parametrize("levels", [2, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("batch", [2, 9])
def check_arbitrary_levels_lose_less_than_the_bar_before_rounding(
    levels: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsorted levels of any size, from codes at random; split among programs, sums come in float32."""
    torch.manual_seed(levels)
    k = levels.bit_length() - 1
    stored = quantize(torch.randn(64, 512), f"int{k}" if k > 1 else "binary")
    w = pack(stored)
    w = PackedWeight(**(vars(w) | {"levels": torch.randn(levels) * 100, "scales": torch.rand_like(w.scales.float())}))
    gain = best_gain(w.levels, unpack_codes(w.codes, 64, 512), 512)
    w = PackedWeight(**(vars(w) | {"gain": gain}))
    codes = unpack_codes(w.codes, 64, 512).long()
    scale = w.scales.transpose(1, 2).flatten(0, 1).repeat_interleave(64, 1).double()
    x = torch.randn(batch, 512).bfloat16()
    expected = x.double() @ (w.levels.double()[codes] * scale).T
    monkeypatch.setattr(kernels, "_split", lambda *_: 2)
    kept: list[Tensor] = []
    total = Tensor.sum

    def kept_sum(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kept.append(total(tensor, *args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(Tensor, "sum", kept_sum)
    y = product(x, w)
    assert error(kept[0], expected) <= 2e-3
    assert error(y, expected) <= 2.5e-3


@pytest.mark.parametrize("shape", TENSOR_CORE_SHAPES, ids=str)
def check_every_shape_of_the_tensor_cores(shape: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    groups, tiles, in_tile = shape
    batch = TENSOR_CORE_SHAPES[shape]
    meta = {"GROUPS": groups, "BATCH": batch, "TILES": tiles, "IN_TILE": in_tile}
    monkeypatch.setattr(tuning.tuned_matrix, "configs", [triton.Config(meta)])
    format = "int4-row-zp" if tiles == 4 else "nf3-b128"
    compare(format, 72, 320, batch + 3, torch.bfloat16)


def check_which_configurations_suit_a_product() -> None:
    for rows in range(1, 9):
        assert tuning.within_registers([tuning.configuration(4, SLOTS=32)], {}, BATCH=rows)
        assert not tuning.within_registers([tuning.configuration(4, SLOTS=512)], {}, BATCH=rows)
    tl = triton.language
    every = [
        triton.Config(dict(zip(("GROUPS", "BATCH", "TILES", "IN_TILE"), s, strict=False))) for s in tuning.MATRIX_SHAPES
    ]
    for kind in (tl.float32, tl.float16, tl.bfloat16, tl.int8):
        for block in (16, 32, 64, 96, 128, 2**30):
            for rows in (16, 32, 64, 128, 256):
                found = [c.kwargs for c in tuning.suitable(every, {}, TYPE=kind, BLOCK=block, CLASS=rows)]
                assert found, (kind, block, rows)
                for shape in found:
                    assert shape["BATCH"] <= rows
                    assert shape["IN_TILE"] or shape["TILES"] == 1 or block % (32 * shape["TILES"]) == 0
                    assert not shape["IN_TILE"] or (kind == tl.bfloat16 and block >= 32)


def check_leading_dimensions_strides_and_nothing() -> None:
    w = pack(quantize(torch.randn(24, 64), "nf4-b32"))
    x = torch.randn(2, 64, 3).transpose(1, 2)
    assert torch.equal(product(x, w), product(x.contiguous(), w))
    assert torch.equal(product(x, w)[1], product(x[1], w))
    assert torch.equal(product(x[0, 0], w), product(x[0, :1], w)[0])
    assert product(x[:0], w).shape == (0, 3, 24)
    moved = torch.randn(2 * 64 + 1).half()[1:].view(2, 64)  # not where 64 bits begin
    assert torch.equal(product(moved, w), product(moved.clone(), w))


@pytest.mark.parametrize("format", ["int4-b32", "int3-b64-zp", "int8-row-zpf", "int4n-b64-dq", "int2-tensor"])
def check_a_matrix_without_rows_or_columns(format: str) -> None:
    no_rows, no_columns = pack(quantize(torch.randn(0, 64), format)), pack(quantize(torch.randn(5, 0), format))
    for bits in (16, 8):
        assert product(torch.randn(2, 3, 64), no_rows, bits).shape == (2, 3, 0)
        for batch in (0, 1, 20):
            x = torch.randn(batch, 0).bfloat16()
            assert torch.equal(product(x, no_columns, bits), torch.zeros(batch, 5).bfloat16())


@pytest.mark.parametrize(("batch", "activation_bits"), [(2, 16), (9, 16), (3, 8)])
def check_two_runs_agree_to_the_last_bit(batch: int, activation_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_split", lambda *_: 2)  # partial sums, too
    w, x = pack(quantize(torch.randn(40, 192), "int4-b64-zp")), torch.randn(batch, 192).bfloat16()
    assert torch.equal(product(x, w, activation_bits), product(x, w, activation_bits))


def check_levels_are_asked_again_when_they_change() -> None:
    levels = torch.arange(16.0)
    assert kernels._integers_among(levels) == 1
    levels -= 8
    assert kernels._integers_among(levels) == CENTRED
    levels[3] = 2.5
    assert kernels._integers_among(levels) == 0

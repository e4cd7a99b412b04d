"""The C path against the PyTorch path, bit for bit, and what happens where there is no compiler."""

import warnings
from pathlib import Path

import pytest
import torch

from kbitlib.quant import Format, QuantizedTensor, native, quantize
from kbitlib.quant.codebooks import codebook
from kbitlib.quant.format import every_format
from kbitlib.quant.grids import fixed_book

NEVER = ("log", "vq", "e8")  # left to PyTorch
FORMATS = [str(one) for one in every_format() if one.kind not in NEVER]
VARIANTS = [
    *("int4-b64-fp32", "int4-row", "nf4-tensor", "int5s-b32-bf16", "nf4-b64-dq", "fp5-b48-bf16", "nf3-b7"),
    *("int3-b100-zp", "int4-b64-mse", "nf4-b64-p99", "int4-b64-zp-mse", "int6-b64-zpf-bf16", "e2m1-b32-e8m0"),
    *("ternary-b24-bf16", "binary-b20", "dynamic8-b256-fp32", "pot5-row-fp32", "e4m3-tensor", "int8-tensor-zp"),
    *("kmeans3-b32", "quantile5"),
]  # fmt: skip
SHAPES = [(16, 128), (7, 37), (3, 5, 11), (1, 1), (130,), (3, 1024), (1, 4096)]


@pytest.fixture
def compiled() -> None:
    if native.library() is None:
        pytest.skip("no C compiler here: the PyTorch path is the only one")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("format", ["nf4", "ternary", "int4-b32-zp", "e4m3"])
def test_the_path_is_taken(format: str) -> None:
    matrix, parsed = torch.randn(8, 128), Format.parse(format)
    assert native.quantize(matrix, parsed, fixed_book(parsed, matrix.device)) is not None


def both(tensor: torch.Tensor, format: str, monkeypatch: pytest.MonkeyPatch) -> tuple[QuantizedTensor, QuantizedTensor]:
    fast = quantize(tensor, format)
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return fast, quantize(tensor, format)


def assert_same(tensor: torch.Tensor, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = both(tensor, format, monkeypatch)
    assert fast.arrays.keys() == plain.arrays.keys()
    for name, array in fast.arrays.items():
        assert torch.equal(array.view(torch.uint8), plain.arrays[name].view(torch.uint8)), (name, tensor.shape)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        restored = fast.dequantize(dtype)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            assert torch.equal(restored, plain.dequantize(dtype)), (dtype, tensor.shape)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("format", FORMATS + VARIANTS)
def test_codes_scales_and_weights_are_those_of_the_plain_path(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in SHAPES:
        assert_same(torch.randn(shape, generator=generator), format, monkeypatch)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("format", ["nf4", "int3-b60", "int5-b64-zp", "int6-b64-zpf", "e4m3", "ternary", "nf7", "fp8"])
def test_the_plain_c_of_other_machines_gives_the_same(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbitlib.quant.compiled.FLAGS", (("-fopenmp",), ()))
    native.library.cache_clear()
    try:
        for shape in SHAPES:
            assert_same(torch.randn(shape, generator=torch.Generator().manual_seed(4)), format, monkeypatch)
    finally:
        native.library.cache_clear()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "format", ["nf4", "int4", "int4-b64-zp", "int4-b64-zpf", "e4m3", "int3s", "mxfp4", "ternary", "binary"]
)
def test_odd_values_too(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, 192, generator=generator)
    weight[0] = 0
    weight[1, ::2] = 0
    weight[2, :64] = weight[2, :64].abs() + 1
    weight[3, :64] = -weight[3, :64].abs() - 1
    weight[4] = 3.0
    weight[5, 5] = 300.0
    weight[6] = weight[6].sign()
    assert_same(weight, format, monkeypatch)
    assert_same(weight.bfloat16(), format, monkeypatch)
    assert_same(weight.half(), format, monkeypatch)
    assert_same(weight.double(), format, monkeypatch)
    assert_same(weight.T, format, monkeypatch)
    assert_same((weight.abs() * 64).round() / 64 - 0.5, format, monkeypatch)  # many ties


@pytest.mark.usefixtures("compiled")
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    weight = torch.randn(333, 77, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    try:
        for format in ("int3", "ternary", "nf4", "binary"):
            torch.set_num_threads(1)
            alone = quantize(weight, format)
            torch.set_num_threads(3)
            assert torch.equal(quantize(weight, format).codes, alone.codes)
            assert torch.equal(alone.dequantize(), quantize(weight, format).dequantize())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "format", ["nf4", "int4-b64-zp", "int4-b64-zpf", "binary", "e2m1-b16-e4m3", "q4.4", "int4-tensor"]
)
def test_what_is_not_finite_is_refused(value: float, format: str) -> None:
    weight = torch.ones(8, 64)
    weight[5, 17] = value
    with pytest.raises(ValueError, match="1 of 512 values are NaN, infinite"):
        quantize(weight, format)


def test_a_scale_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="does not fit fp16: use -bf16 or -fp32"):
        quantize(torch.full((2, 64), 1e9), "int4")


@pytest.mark.parametrize("depth", range(1, 9))
def test_the_search_tree_leads_to_the_rank(depth: int) -> None:
    thresholds = torch.linspace(-1, 1, 2**depth - 1)
    tree = native.search_tree(thresholds, depth)
    for value in (-2.0, -0.3, 0.0, 0.123, 2.0):
        node = 1
        for _ in range(depth):
            node = 2 * node + int(value > tree[node])
        assert node - 2**depth == int((thresholds < value).sum())


def test_without_a_compiler_it_says_so_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    native.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler .* is found: quantization runs in PyTorch"):
            quantize(torch.ones(2, 64), "nf4")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(quantize(torch.ones(2, 64), "nf4").dequantize(), torch.ones(2, 64))
    finally:
        native.library.cache_clear()


@pytest.mark.usefixtures("compiled")
def test_a_damaged_compiled_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is not None
        (made,) = (tmp_path / "kbit-lab").glob("*.so")
        damaged = made.read_bytes()[:1000]
        made.unlink()  # the loaded one stays mapped
        made.write_bytes(damaged)
        native.library.cache_clear()
        assert native.library() is not None
        assert torch.equal(quantize(torch.eye(64), "nf4").dequantize(), torch.eye(64))
        assert made.stat().st_size > 1000
    finally:
        native.library.cache_clear()


@pytest.mark.usefixtures("compiled")
def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    native.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="does not compile native.c"):
            assert native.library() is None
    finally:
        native.library.cache_clear()


def test_every_level_finds_itself() -> None:
    for name in ("nf8", "dynamic8", "e4m3", "nf5", "pot6"):
        levels = codebook(name, unit=True).levels.unique()
        assert torch.equal(quantize(levels, f"{name}-row-fp32").dequantize().unique(), levels)


@pytest.mark.parametrize(
    "format", ["nf4-b16", "int4-b64-zp", "kmeans4", "e2m1-b16-e4m3", "nf4-b64-dq", "e8c8", "ternary"]
)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_pytorchs_default_type_and_device_do_not_matter(format: str, default: torch.dtype) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(5))
    expected = quantize(weight, format).dequantize()
    torch.set_default_dtype(default)
    try:
        assert torch.equal(quantize(weight, format).dequantize(), expected)
        with torch.device("meta"):
            assert torch.equal(quantize(weight, format).dequantize(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("format", ["int8", "nf4", "int4-b64-mse", "q4.4", "kmeans4"])
def test_a_view_that_stands_for_the_negative_is_read_as_it_is(format: str) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(6))
    negative = torch._neg_view(weight)
    assert negative.is_neg()
    assert torch.equal(quantize(negative, format).dequantize(), quantize(negative.clone(), format).dequantize())


@pytest.mark.parametrize("format", ["nf4-b64-e8m0", "ternary-b64-e8m0", "int4", "int4s", "int4-b64-zpf"])
def test_zero_blocks_of_either_sign_are_stored_alike(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for zeros in (torch.zeros(2, 64), -torch.zeros(2, 64)):
        assert_same(zeros, format, monkeypatch)

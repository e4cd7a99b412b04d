"""Quantize and dequantize: every format on every kind of tensor."""

import dataclasses
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kbitlib.quant import Format, QuantizedTensor, quantize
from kbitlib.quant.blocks import Blocks
from kbitlib.quant.format import every_format
from kbitlib.quant.rounding import decode
from kbitlib.quant.tensor import DTYPES

FORMATS = [str(format) for format in every_format()]
PARTS = [
    "-row",
    "-tensor",
    "-b8",
    "-b16-bf16",
    "-b16-dq",
    "-b16-e4m3",
    "-b16-mse",
    "-b7",
    "-b7-fp32",
    "-b7-bf16",
    "-b7-e8m0",
    "-b7-e4m3",
    "-b7-dq",
    "-b7-mse",
    "-b7-p90",
]
SHAPES = [(), (1,), (0,), (5, 0), (0, 5), (127,), (3, 64), (3, 131), (2, 3, 5), (2, 3, 2, 7)]


def accepted(texts: list[str]) -> list[str]:
    formats = set()
    for text in texts:
        try:
            formats.add(str(Format.parse(text)))
        except ValueError:
            continue
    return sorted(formats)


SOME = ["int3", "int4n", "int4s", "nf3", "e2m1", "e5m2", "pot4", "log3", "quantile3", "kmeans2", "dynamic5", "bnbfp4"]
SOME += ["vq2c3", "vq4c11", "e8c9"]
ALL = FORMATS + accepted([name + part for name in [*SOME, "binary", "ternary"] for part in PARTS])
ALL += accepted(
    [f"int{k}-b7-{zero}{rest}" for k in (2, 3, 8) for zero in ("zp", "zpf") for rest in ("-bf16", "-dq", "-mse")]
)


def sample(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.5).to(dtype)


@given(st.sampled_from(ALL), st.lists(st.integers(0, 19), max_size=4), st.sampled_from(DTYPES), st.integers(0, 9))
@settings(max_examples=400, deadline=None)
def test_any_format_on_any_shape(name: str, shape: list[int], dtype: torch.dtype, seed: int) -> None:
    format, x = Format.parse(name), sample(tuple(shape), seed, dtype)
    before = x.clone()
    packed = quantize(x, format)
    found = packed.dequantize()
    assert torch.equal(x, before)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert found.isfinite().all()
    assert packed.bits_per_weight == format.bits_per_weight(x.shape)
    assert packed.nbytes == sum(array.nbytes for array in packed.arrays.values())
    assert torch.equal(packed.dequantize(torch.float64).to(dtype), found)
    assert torch.equal(quantize(x, str(format)).dequantize(), found)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_awkward_shapes(name: str, shape: tuple[int, ...]) -> None:
    packed = quantize(sample(shape, 0), name)
    assert packed.dequantize().shape == shape
    assert packed.bits_per_weight == Format.parse(name).bits_per_weight(shape)


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("q")])
def test_a_zero_block_gives_zeros(name: str) -> None:
    x = torch.zeros(3, 20)
    x[1] = sample((20,), 0)
    found = quantize(x, name).dequantize()
    if "tensor" not in name:
        assert not found[[0, 2]].any()
    assert not quantize(torch.zeros(3, 20), name).dequantize().any()


@pytest.mark.parametrize("name", [name for name in ALL if not re.match("log|vq|e8c|.*-dq", name)])
def test_codes_are_the_nearest_levels_against_the_stored_scale(name: str) -> None:
    x = sample((3, 20), 1)
    packed = quantize(x, name)
    blocks = Blocks.of(x.shape, packed.format.block)
    parts = zip(blocks.split(x.view(blocks.rows, -1)), packed.grids(), strict=True)
    count = 3 if name.startswith("ternary") else 2 ** int(packed.format.k)
    if packed.grids()[0].book is not None:
        count = len(packed.grids()[0].book.table)
    least = []
    for part, grid in parts:
        every = [decode(torch.full(part.shape, code, dtype=torch.uint8), grid) for code in range(count)]
        distances = (torch.stack(every) - part).abs().nan_to_num(torch.inf)  # NaN: codes that stand for nothing
        least.append(distances.min(0).values)
    found = (packed.dequantize() - x).abs()
    assert torch.allclose(found, Blocks.join(least).view_as(x), rtol=1e-5, atol=1e-6)


# The largest level is met by the largest weight, so that the scale comes out of the rounded weights again.
IDEMPOTENT = [
    f"{n}-b16-{s}" for n in ("nf4", "nf3", "pot3", "bnbfp4", "e2m1", "e4m3", "int4n") for s in ("fp16", "bf16")
]
IDEMPOTENT += [f"{n}-b32-e8m0" for n in ("e2m1", "e4m3", "e5m2", "e2m3", "e3m2")] + [
    "binary-b16",
    "q2.6",
    "nf4-b64-fp32",
]


@given(st.sampled_from(IDEMPOTENT), st.integers(0, 999))
@settings(max_examples=150, deadline=None)
def test_rounding_what_is_rounded_changes_nothing(name: str, seed: int) -> None:
    once = quantize(sample((3, 50), seed), name).dequantize()
    assert torch.equal(quantize(once, name).dequantize(), once)


@pytest.mark.parametrize(
    "name", ["int4-b64", "int4-b64-zp", "nf4-b64-dq", "log4-b64", "kmeans4-b64", "ternary-b64", "q2.6"]
)
@pytest.mark.parametrize(
    "view",
    [lambda x: x.T, lambda x: x[::2], lambda x: x[:, 1::3], lambda x: x.view(8, 4, 16).transpose(1, 2)],
)
def test_views_quantize_as_their_copies(name: str, view: object) -> None:
    x = view(sample((32, 16), 0))  # type: ignore[operator]
    assert torch.equal(quantize(x, name).dequantize(), quantize(x.contiguous(), name).dequantize())


@pytest.mark.parametrize("name", FORMATS)
def test_twice_the_same(name: str) -> None:
    x = sample((4, 150), 3)
    one, two = quantize(x, name).arrays, quantize(x, name).arrays
    assert all(torch.equal(one[key].view(torch.uint8), two[key].view(torch.uint8)) for key in one)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    x = torch.ones(3, 5)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="1 of 15 values are NaN, infinite"):
        quantize(x, "int4")


def test_what_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond float32"):
        quantize(torch.tensor([1e300], dtype=torch.float64), "nf4")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="only float16, bfloat16, float32 and float64"):
        quantize(torch.zeros(3, dtype=dtype), "nf4")


def test_arrays_of_wrong_size_are_refused() -> None:
    packed = quantize(sample((3, 64), 0), "nf4-b64")
    with pytest.raises(ValueError, match="has arrays"):
        QuantizedTensor(packed.format, torch.Size((3, 65)), packed.dtype, packed.codes, packed.scales)
    with pytest.raises(ValueError, match="has arrays"):
        QuantizedTensor(packed.format, packed.shape, packed.dtype, packed.codes)


def test_a_tensor_is_rebuilt_from_its_arrays() -> None:
    for name in ALL:
        packed = quantize(sample((3, 70), 0), name)
        again = QuantizedTensor(packed.format, packed.shape, packed.dtype, **packed.arrays)
        assert torch.equal(again.dequantize(), packed.dequantize())


@pytest.mark.parametrize("fixed", ["int4", "int4n", "nf4", "e2m1", "pot4", "dynamic4", "bnbfp4", "quantile4"])
@pytest.mark.parametrize("block", ["b16", "b64", "row", "tensor"])
def test_no_codebook_beats_kmeans_at_the_same_scales(fixed: str, block: str) -> None:
    x = torch.distributions.StudentT(4.0).sample((16, 256))
    error = {name: (quantize(x, f"{name}-{block}-fp32").dequantize() - x).norm() for name in ("kmeans4", fixed)}
    assert error["kmeans4"] <= error[fixed] * 1.005


@pytest.mark.parametrize("name", ["int", "nf", "log", "kmeans", "dynamic"])
def test_a_further_bit_always_helps(name: str) -> None:
    x = sample((64, 256), 0)
    errors = [float((quantize(x, f"{name}{k}-b64").dequantize() - x).norm()) for k in range(2, 9)]
    assert all(more < 0.8 * less for less, more in pairwise(errors))


def test_log_levels_run_evenly_in_the_logarithm_between_the_extremes() -> None:
    x = torch.tensor([[0.01, -0.02, 0.04, 0.08, -0.16, 0.32, 0.64, 1.28]])
    found = quantize(x, "log4-row-fp32").dequantize()
    assert torch.allclose(found, x, rtol=2e-3)  # eight magnitudes, an octave apart
    assert torch.equal(found.sign(), x.sign())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scales", lambda array: array.view(torch.int16)),
        ("scales", lambda array: array.T),
        ("scales", lambda array: array.to("meta")),
        ("codes", lambda array: array.view(4, -1)),
        ("codes", lambda array: array.view(torch.int8)),
    ],
)
def test_arrays_of_another_type_shape_or_place_are_refused(name: str, change) -> None:
    packed = quantize(torch.randn(4, 128), "int4")
    with pytest.raises(ValueError, match=r"int4-b64 of shape .* has arrays|lie on one device"):
        dataclasses.replace(packed, **{name: change(getattr(packed, name))})


def test_outlier_columns_lie_within_the_matrix() -> None:
    packed = quantize(torch.randn(4, 128), "int4")
    with pytest.raises(ValueError, match="outlier columns are 0 to 127, not"):
        dataclasses.replace(
            packed, outlier_columns=torch.tensor([128], dtype=torch.int32), outliers=torch.ones(4, 1).half()
        )


def test_double_quantization_of_scales_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond float32, so dq cannot store them"):
        quantize(torch.full((4, 64), 2e38), "nf4-dq")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_whole_numbers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="only float16, bfloat16, float32 and float64 tensors are quantized"):
        quantize(torch.ones(3, 3, dtype=dtype), "int8")

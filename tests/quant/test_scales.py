"""Scales in their types, and what does not fit them."""

import pytest
import torch

from kbitlib.quant import quantize
from kbitlib.quant.codebooks import codebook


@pytest.mark.parametrize(
    ("scale", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_float_scales_are_the_largest_weight(scale: str, dtype: torch.dtype) -> None:
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    stored = quantize(x, f"nf4-b64-{scale}").scales
    expected = torch.stack([part.abs().amax(1) for part in x.split(64, 1)], 1)
    assert stored is not None
    assert stored.dtype == dtype
    assert torch.equal(stored, expected.to(dtype))


@pytest.mark.parametrize(("name", "emax"), [("e2m1", 2), ("e4m3", 8), ("e5m2", 15), ("e2m3", 2), ("e3m2", 4)])
def test_microscaling_takes_the_floor_of_the_exponent(name: str, emax: int) -> None:
    largest = torch.tensor([1.0, 1.999, 2.0, 3.5, 2**-20, 0.75e-3, 100.0])
    x = torch.zeros(7, 32)
    x[:, 3] = -largest
    stored = quantize(x, f"{name}-b32-e8m0").scales
    assert stored is not None
    expected = [2.0 ** (int(torch.tensor(a).log2().floor()) - emax) for a in largest.tolist()]
    assert stored.float().flatten().tolist() == expected
    assert stored.dtype == torch.float8_e8m0fnu


def test_microscaling_saturates_and_rounds_half_to_even() -> None:
    x = torch.zeros(32)
    x[:4] = torch.tensor([7.9, 5.0, -3.5, 0.25])  # the scale is 1
    assert quantize(x, "mxfp4").dequantize()[:4].tolist() == [6.0, 4.0, -4.0, 0.0]


def test_nvfp4_scales_reach_448_times_the_tensor_scale() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    packed = quantize(x, "nvfp4")
    assert packed.scales is not None
    assert packed.outer_scales is not None
    assert packed.scales.float().max() == 448
    assert float(packed.outer_scales) == pytest.approx(float(x.abs().max()) / (448 * 6), rel=1e-6)


def test_double_quantization_is_qloras() -> None:
    x = torch.randn(70, 300, generator=torch.Generator().manual_seed(0))
    once, twice = quantize(x, "nf4-b64-fp32"), quantize(x, "nf4-b64-dq")
    assert once.scales is not None
    assert twice.scales is not None
    assert twice.outer_scales is not None
    assert torch.equal(once.codes, twice.codes)  # chosen before the scales are quantized
    mean, largest = twice.outer_scales[0], twice.outer_scales[1:]
    deviations = once.scales.flatten() - once.scales.mean()
    assert mean == once.scales.mean()
    assert torch.equal(largest, torch.stack([part.abs().max() for part in deviations.split(256)]))
    levels = codebook("dynamic8").levels
    first = (deviations[:256] / largest[0])[:, None]
    gap = (first - levels).abs()
    assert torch.allclose(
        gap.gather(1, twice.scales.flatten()[:256, None].long()), gap.min(1, keepdim=True).values, atol=1e-6
    )


@pytest.mark.parametrize(
    ("value", "format", "way_out"),
    [
        (1e6, "int4-b64", "-bf16 or -fp32"),
        (1e-9, "int4-b64", "-bf16 or -fp32"),
        (1e-9, "nf4-tensor-fp16", "-bf16 or -fp32"),
        (1e-41, "mxfp4", "-bf16 or -fp32"),
        (1e-42, "nf4-b64-fp32", "multiply"),
        (1e5, "int4-b64-zpf", "-bf16"),
    ],
)
def test_a_scale_that_does_not_fit_its_type_is_an_error_with_a_way_out(value: float, format: str, way_out: str) -> None:
    with pytest.raises(ValueError, match=way_out):
        quantize(torch.full((2, 64), value), format)


def test_the_way_out_leads_out() -> None:
    x = torch.tensor([1e6, -2e5, 3.0])
    for format in ("int8-b64-bf16", "int8-b64-fp32"):
        assert torch.allclose(quantize(x, format).dequantize(), x, atol=1e6 / 127)


def test_a_small_block_beside_a_large_one_does_not_fit_e4m3() -> None:
    x = torch.cat([torch.full((16,), 1.0), torch.full((16,), 1e-9)])
    with pytest.raises(ValueError, match="does not fit e4m3"):
        quantize(x, "nvfp4")

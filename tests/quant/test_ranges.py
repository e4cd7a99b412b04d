"""Ranges: percentiles, and clipping of least squared error."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kbitlib.quant import Format, quantize
from kbitlib.quant.ranges import full_range


@pytest.fixture(scope="module")
def weight() -> Tensor:
    made = torch.randn(16, 150, generator=torch.Generator().manual_seed(0))
    made[3, 17] = 40.0  # an outlier, so that clipping pays
    return made


def block_errors(weight: Tensor, format: str) -> Tensor:
    """(rows, 3) squared errors by block of 64, the last one short."""
    error = (quantize(weight, format).dequantize() - weight).square()
    return torch.stack([part.sum(1) for part in error.split(64, 1)], 1)


@pytest.mark.parametrize("name", ["int2", "int4", "int3n", "int3s", "nf3", "e2m1", "pot3", "dynamic4", "bnbfp4"])
@pytest.mark.parametrize("scale", ["fp16", "e4m3"])
def test_mse_is_never_worse_than_absmax_in_any_block(weight: Tensor, name: str, scale: str) -> None:
    found, plain = (block_errors(weight, f"{name}-b64-{scale}{range_}") for range_ in ("-mse", ""))
    assert (found <= plain * (1 + 1e-6)).all()
    assert found.sum() < plain.sum()


def test_mse_beats_the_mean_magnitude_for_ternary(weight: Tensor) -> None:
    found, plain = (block_errors(weight, f"ternary-b64{range_}") for range_ in ("-mse", ""))
    assert found.sum() < 0.95 * plain.sum()


@pytest.mark.parametrize("zero", ["zp", "zpf"])
def test_mse_with_zero_points(weight: Tensor, zero: str) -> None:
    found, plain = (block_errors(weight, f"int3-b64-{zero}{range_}") for range_ in ("-mse", ""))
    assert (found <= plain * (1 + 1e-6)).all()
    assert found.sum() < 0.95 * plain.sum()


def test_mse_comes_close_to_the_best_of_a_dense_grid() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    best = torch.full((64,), torch.inf)
    for fraction in torch.linspace(0.2, 1, 400):
        step = fraction * x.abs().amax(1, keepdim=True) / 1.5
        best = torch.minimum(best, ((x / step).round().clamp(-2, 1) * step - x).square().sum(1))
    found = (quantize(x, "int2-b64-fp32-mse").dequantize() - x).square().sum(1)
    assert found.sum() <= 1.01 * best.sum()


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.9])
def test_a_percentile_range_is_that_of_the_magnitudes(weight: Tensor, percent: float) -> None:
    low, high = full_range(weight[:, None, :], Format.parse(f"nf4-row-p{percent:g}"))
    expected = np.percentile(weight.abs().numpy(), percent, axis=1)
    np.testing.assert_allclose(high[:, 0, 0], expected, rtol=1e-5)
    assert not low.any()


def test_a_percentile_range_with_a_zero_point_cuts_both_ends(weight: Tensor) -> None:
    low, high = full_range(weight[:, None, :], Format.parse("int4-row-zpf-p95"))
    np.testing.assert_allclose(low[:, 0, 0], np.percentile(weight.numpy(), 5, axis=1), rtol=1e-5)
    np.testing.assert_allclose(high[:, 0, 0], np.percentile(weight.numpy(), 95, axis=1), rtol=1e-5)


@pytest.mark.parametrize("format", ["int4-b64-p90", "int4s-b64-p90", "int4-b64-zp-p90", "int4-b64-zpf-p90"])
def test_a_percentile_of_mostly_zeros_falls_back_on_the_extremes(format: str) -> None:
    x = torch.zeros(64)
    x[5] = 3.0
    assert quantize(x, format).dequantize()[5] == pytest.approx(3.0, rel=0.07)


def test_the_mean_magnitude_of_binary_and_ternary() -> None:
    x = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    assert quantize(x, "binary-row-fp32").dequantize().tolist() == [[1.625, -1.625, 1.625, 1.625]]
    assert quantize(x, "ternary-row-fp32").dequantize().tolist() == [[1.625, -1.625, 1.625, 0]]

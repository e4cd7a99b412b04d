import pytest
import torch
from torch import Tensor

from kbitlib.methods.awq import awq_scale, output_error
from kbitlib.methods.calibration import InputStatistics
from kbitlib.quant import quantize


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_with_outliers() -> Tensor:
    x = random(400, 96, seed=0)
    x[:, [5, 40, 41]] *= 30
    return x


def rounded(weight: Tensor, scale: Tensor, format: str) -> Tensor:
    return quantize(weight * scale, format).dequantize() / scale


def test_output_error_is_that_of_the_outputs() -> None:
    x, weight = inputs_with_outliers(), random(24, 96, seed=1)
    other = quantize(weight, "int3").dequantize()
    direct = 2 * ((x.double() @ (weight - other).double().T) ** 2).sum(1).mean()
    # the Hessian is summed in float32
    assert output_error(weight, other, InputStatistics.of(x)) == pytest.approx(float(direct), rel=1e-5)


@pytest.mark.parametrize("format", ["int2", "int3", "int4", "nf4", "int4-b32-zp", "e2m1", "kmeans3", "mxfp4"])
def test_outlier_channels_lose_less_than_when_rounded_plainly(format: str) -> None:
    statistics, weight = InputStatistics.of(inputs_with_outliers()), random(24, 96, seed=1)
    scale = awq_scale([weight], statistics, format)
    assert scale.shape == (96,)
    assert scale[[5, 40, 41]].min() > 1.5 * scale.median()
    plain = output_error(weight, quantize(weight, format).dequantize(), statistics)
    assert output_error(weight, rounded(weight, scale, format), statistics) < 0.85 * plain


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("format", ["int2", "int4", "nf3"])
def test_the_error_is_never_larger_than_that_of_plain_rounding(seed: int, format: str) -> None:
    statistics = InputStatistics.of(random(200, 40, seed=seed) + random(40, seed=seed + 50))
    weights = [random(8, 40, seed=seed + 100), random(4, 40, seed=seed + 200)]
    scale = awq_scale(weights, statistics, format)
    plain = sum(output_error(w, quantize(w, format).dequantize(), statistics) for w in weights)
    assert sum(output_error(w, rounded(w, scale, format), statistics) for w in weights) <= plain


def test_inputs_of_one_size_leave_weights_as_they_are() -> None:
    ones = torch.ones(16)
    statistics = InputStatistics(hessian=2 * torch.eye(16), mean_abs=ones, max_abs=ones, count=1)
    assert torch.equal(awq_scale([random(4, 16, seed=0)], statistics, "int3"), ones)


@pytest.mark.parametrize("channels", [[3], list(range(16))])
def test_channels_that_are_always_zero_give_a_finite_scale(channels: list[int]) -> None:
    x = random(50, 16, seed=0)
    x[:, channels] = 0
    scale = awq_scale([random(4, 16, seed=1)], InputStatistics.of(x), "int3")
    assert bool((scale > 0).all() and scale.isfinite().all())


def test_what_cannot_be_quantized_is_refused() -> None:
    statistics = InputStatistics.of(random(50, 16, seed=0))
    with pytest.raises(ValueError, match="unknown format"):
        awq_scale([random(4, 16, seed=1)], statistics, "int9")
    with pytest.raises(ValueError, match="finite floating-point"):
        awq_scale([torch.full((4, 16), torch.nan)], statistics, "int4")

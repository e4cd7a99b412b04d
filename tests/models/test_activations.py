import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kbitlib.methods.calibration import InputStatistics, collect
from kbitlib.models.activations import quantize_activations
from kbitlib.models.layers import block_linears
from kbitlib.models.quantized import quantized_copy
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.quant import Format, quantize

WRAPPED = ("int8-row", "int4-row", "int4-row-zp", "nf4-b16", "e4m3-row", "mxfp4", "int8-b8")
TOKENS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(Shape(width=64, depth=2, context=32)).initialise(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def statistics(model: Transformer) -> dict[str, InputStatistics]:
    return collect(model, [TOKENS], dict(block_linears(model)))


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return model(TOKENS)


def error(model: nn.Module, other: nn.Module) -> float:
    return float((output(other) - output(model)).norm() / output(model).norm())


def round_exactly(x: torch.Tensor, format: str) -> torch.Tensor:
    """Rounded under float32 scales where the format's are fp16, since scales of activations are not stored."""
    parsed = Format.parse(format)
    return quantize(x, replace(parsed, scale="fp32") if parsed.scale == "fp16" else parsed).dequantize()


class Wrapped(nn.Module):
    """One linear layer as a model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 5)

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("format", WRAPPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_finds_its_own_scale(format: str, dtype: torch.dtype) -> None:
    model = Wrapped().to(dtype)
    x = torch.randn(3, 7, 24).to(dtype) * torch.logspace(-3, 3, 7)[:, None].to(dtype)
    x[1, 2] = 0  # a token of zeros
    with torch.no_grad():
        found = quantize_activations(model, format)(x)
        expected = torch.stack([model.layer(round_exactly(row, format)) for row in x])
    assert found.dtype is dtype
    # one product of 21 tokens or three of 7: the order of summation may differ
    assert torch.allclose(found, expected, rtol=1e-5 if dtype is torch.float32 else 2**-7)
    assert torch.equal(found[1, 2], model.layer.bias.detach())


@pytest.mark.parametrize(
    ("format", "steps"), [("int8-tensor", 255), ("int4n-tensor", 14), ("int4-tensor-fp32", 15), ("int2-tensor", 3)]
)
def test_static_scales_bring_the_calibrated_maximum_to_the_highest_level(format: str, steps: int) -> None:
    model = Wrapped()
    seen = torch.randn(100, 24, generator=torch.Generator().manual_seed(0))
    static = collect(model, [seen], {"layer": model.layer})
    step = seen.abs().max() / (steps / 2)
    x = 2 * torch.randn(4, 6, 24, generator=torch.Generator().manual_seed(1))
    rounded = (x / step).round().clamp(-(steps // 2) - steps % 2, steps // 2) * step
    assert float(rounded.abs().max()) < float(x.abs().max())  # clipped: more than was seen
    with torch.no_grad():
        assert torch.allclose(quantize_activations(model, format, static)(x), model.layer(rounded), atol=1e-5)
        assert torch.equal(quantize_activations(model, format, static)(0 * x)[0, 0], model.layer.bias)


@pytest.mark.parametrize("format", ["nf4-tensor", "e2m1-tensor", "pot4-tensor", "dynamic8-tensor", "e4m3-tensor-e8m0"])
def test_other_static_levels_are_those_of_the_format(format: str) -> None:
    model = Wrapped()
    x = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    static = collect(model, [x], {"layer": model.layer})
    with torch.no_grad():  # the maximum is the same, so what quantize does to all of x is what is due
        expected = model.layer(round_exactly(x, format))
        assert torch.allclose(quantize_activations(model, format, static)(x), expected, atol=1e-5)


def test_a_layer_that_saw_only_zeros_reads_zeros() -> None:
    model = Wrapped()
    static = collect(model, [torch.zeros(2, 24)], {"layer": model.layer})
    with torch.no_grad():
        found = quantize_activations(model, "int8-tensor", static)(torch.ones(1, 24))
    assert torch.equal(found[0], model.layer.bias)


def test_fewer_bits_lose_more(model: Transformer, statistics: dict[str, InputStatistics]) -> None:
    w8, w4 = quantized_copy(model, "int8-row")[0], quantized_copy(model, "int4-b64")[0]
    w8a8, w4a8, w4a4 = (
        error(model, quantize_activations(weights, format))
        for weights, format in ((w8, "int8-row"), (w4, "int8-row"), (w4, "int4-row"))
    )
    assert w8a8 < 0.03
    assert w8a8 < 0.3 * w4a8
    assert w4a8 == pytest.approx(error(model, w4), rel=0.1)  # 8-bit activations cost little beside 4-bit weights
    assert w4a8 < 0.8 * w4a4
    assert w8a8 < error(model, quantize_activations(w8, "int8-tensor", statistics)) < 0.1


def test_the_original_stays_as_it_is_and_copies_keep_the_rounding(model: Transformer) -> None:
    before = output(model)
    rounded = quantize_activations(model, "int4-row")
    assert torch.equal(output(model), before)
    assert not torch.equal(output(rounded), before)
    assert torch.equal(output(copy.deepcopy(rounded)), output(rounded))
    assert rounded.state_dict().keys() == model.state_dict().keys()


def test_weights_may_be_rounded_before_or_after(model: Transformer) -> None:
    first = quantize_activations(quantized_copy(model, "int4-b64")[0], "int8-row")
    second = quantized_copy(quantize_activations(model, "int8-row"), "int4-b64")[0]
    assert torch.equal(output(first), output(second))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e9])
def test_tokens_near_zero_and_large_ones_are_rounded_like_others(size: float) -> None:
    model = Wrapped()
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(model.layer.bias)
    with torch.no_grad():
        for static in (None, collect(model, [x * size], {"layer": model.layer})):
            rounded = quantize_activations(model, "int8-tensor" if static else "int8-row", static)
            # relative to size 1: float32 holds both alike
            expected = model.layer(x)
            assert float((rounded(x * size) / size - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("format", ["int8-tensor", "kmeans4-row", "nvfp4", "int8-row-dq", "q2.6"])
def test_tokens_share_nothing_without_statistics(model: Transformer, format: str) -> None:
    with pytest.raises(ValueError, match="tokens share"):
        quantize_activations(model, format)


@pytest.mark.parametrize("format", ["int8-row", "int8", "kmeans4-tensor", "int8-tensor-zp", "int8-tensor-mse", "q2.6"])
def test_static_formats_have_one_scale_from_the_maximum(
    model: Transformer, statistics: dict[str, InputStatistics], format: str
) -> None:
    with pytest.raises(ValueError, match="no static format"):
        quantize_activations(model, format, statistics)


def test_missing_statistics_are_named(model: Transformer) -> None:
    with pytest.raises(ValueError, match=r"layer blocks\.0\.qkv"):
        quantize_activations(model, "int8-tensor", {})

"""Layers that multiply with packed weights: right for every format, shape and type, and the same after any move."""

import copy
import io
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kbitlib.models.layers import block_linears
from kbitlib.models.quantized import QuantizedLinear, fill, quantize_linears, replace_linears
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.quant import Format, quantize
from kbitlib.quant.format import every_format

READ = ("binary-b32", "int2", "nf3", "int4-b64-zp", "nf4-b64-dq", "mxfp4", "nvfp4", "kmeans5", "fp6-b32-fp32",
        "pot7-row", "int8-b32-zpf", "quantile8-tensor", "q2.3", "int3-b128-bf16", "nf4-row-mse")  # fmt: skip
DEQUANTIZED = ("vq2c8", "e8c16", "log4", "ternary", "int4-b24")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(format: str, rows: int = 24, columns: int = 96, bias: bool = True, bits: int = 16) -> QuantizedLinear:
    weight = quantize(some(rows, columns), format)
    return QuantizedLinear(weight, nn.Parameter(some(rows, seed=2)) if bias else None, bits)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("format", [*READ, *DEQUANTIZED])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_layer_multiplies_by_what_its_codes_stand_for(format: str, dtype: torch.dtype) -> None:
    made, weight, x = layer(format), quantize(some(24, 96), format).dequantize(), some(2, 3, 96, seed=1, dtype=dtype)
    exact = F.linear(x.double(), weight.double(), some(24, seed=2).double())
    assert made(x).dtype is dtype
    assert made(x).shape == (2, 3, 24)
    assert error(made(x), exact) < TOLERANCE[dtype]
    torch.testing.assert_close(made.dequantize(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("format", every_format(), ids=str)
def test_every_format_is_a_layer(format: Format) -> None:
    made, x = layer(str(format), bias=False), some(5, 96, seed=1)
    assert error(made(x), F.linear(x, quantize(some(24, 96), format).dequantize()).double()) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (17, 33), (16, 100), (0, 64), (5, 0), (70, 65)])
@pytest.mark.parametrize("format", ["int3-b64", "nf4-b64-dq", "int4-b16-zp", "binary-row", "vq2c4"])
def test_odd_and_empty_shapes(shape: tuple[int, int], format: str) -> None:
    weight = quantize(some(*shape), format)
    made = QuantizedLinear(weight)
    for batch in ((), (1,), (0,), (2, 0), (3, 2)):
        x = some(*batch, shape[1], seed=1)
        torch.testing.assert_close(made(x), F.linear(x, weight.dequantize()), rtol=1e-4, atol=1e-4)


def test_inputs_need_not_be_contiguous() -> None:
    made, x = layer("nf3-b32"), some(96, 5, seed=1).T
    assert torch.equal(made(x), made(x.contiguous()))
    spread = some(5, 192, seed=1)[:, ::2]
    assert torch.equal(made(spread), made(spread.contiguous()))


@pytest.mark.parametrize("format", ["nf4-b64-dq", "int4-b64-zpf", "nvfp4", "int4-b24", "log4", "kmeans3-b32-bf16"])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_a_change_of_type_leaves_what_is_stored(format: str, cast: str) -> None:
    made = layer(format)
    before = {name: (buffer.dtype, buffer.clone()) for name, buffer in made.named_buffers()}
    getattr(nn.Sequential(made), cast)()
    for name, buffer in made.named_buffers():
        dtype, values = before[name]
        assert buffer.dtype is dtype
        assert torch.equal(buffer.view(torch.uint8), values.view(torch.uint8))
    assert made.bias is not None
    assert made.bias.dtype is getattr(torch.empty(0), cast)().dtype


def test_a_layer_moves_with_its_model() -> None:
    made = layer("nf4-b64-dq").to("meta")
    assert {buffer.device.type for buffer in made.buffers()} == {"meta"}
    assert made.scales.dtype is torch.uint8
    made = layer("nf4-b64").to(memory_format=torch.channels_last)
    assert made.codes.is_contiguous()


def test_a_change_of_all_types_changes_the_bias_alone() -> None:
    made, x = layer("nf4-b64"), some(2, 96, seed=1)
    expected = made(x)
    assert torch.equal(made.type(torch.float32)(x), expected)


@pytest.mark.parametrize("format", ["nf4-b64-dq", "int3-b32-zp", "nvfp4", "kmeans4", "int4-tensor", "vq2c8"])
def test_a_state_dict_brings_back_the_layer(format: str) -> None:
    weight, x = 9 * some(24, 96, seed=9), some(2, 96, seed=3)
    other = QuantizedLinear(quantize(weight, format), nn.Parameter(torch.ones(24)))
    made, file = layer(format), io.BytesIO()
    torch.save(made.state_dict(), file)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert torch.equal(other(x), made(x))


def test_the_state_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="a layer in int4-b64, and this one is in nf4-b64"):
        layer("nf4-b64").load_state_dict(layer("int4-b64").state_dict())


@pytest.mark.parametrize("format", ["nf4-b64-dq", "vq2c8"])
def test_a_copy_is_a_layer_of_its_own(format: str) -> None:
    made, x = layer(format), some(2, 96, seed=3)
    copied, expected = copy.deepcopy(made), made(x)
    made.codes.zero_()
    assert torch.equal(copied(x), expected)
    assert not torch.equal(made(x), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("format", ["int4-b64", "int3-b32-zp", "int8-row"])
def test_a_layer_compiles_as_one_graph(format: str, bits: int) -> None:
    made, x = layer(format, bits=bits), some(2, 96, seed=3)
    assert torch.equal(torch.compile(made, fullgraph=True, backend="aot_eager")(x), made(x))


def test_a_model_of_packed_layers_compiles_as_one_graph() -> None:
    prepared, packed = quantize_linears(model(), "nf4-b32")
    made, tokens = replace_linears(prepared, packed).bfloat16(), torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(torch.compile(made, fullgraph=True, backend="aot_eager")(tokens), made(tokens))


def test_buffers_that_are_replaced_are_read() -> None:
    made, other, x = layer("nf4-b32"), QuantizedLinear(quantize(some(24, 96, seed=9), "nf4-b32")), some(2, 96, seed=3)
    made.bias = None
    made(x)
    made.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(made(x), other(x))
    made.codes = layer("nf4-b32").codes
    assert not torch.equal(made(x), other(x))


@pytest.mark.parametrize("format", ["nf4-b64", "int3-b32-zp", "vq2c8"])
def test_the_gradient_of_the_input_is_that_of_the_dequantized_weight(format: str) -> None:
    made, x = layer(format), some(3, 96, seed=3).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    made(x).square().sum().backward()
    F.linear(plain, made.dequantize(), made.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-4)
    assert made.bias is not None
    assert made.bias.grad is not None


@pytest.mark.parametrize("format", ["int4-b32", "int8-row", "int4-b64-zp", "int3-b128"])
def test_8_bit_activations_are_rounded_a_row_at_a_time(format: str) -> None:
    made, x = layer(format, bits=8), some(4, 96, seed=3) * torch.tensor([[1.0], [100.0], [1e-3], [0.0]])
    rounded = quantize(x, "int8-row-fp32").dequantize()
    torch.testing.assert_close(made(x), F.linear(rounded, made.dequantize(), made.bias), rtol=1e-4, atol=1e-5)
    assert "activation_bits=8" in repr(made)


@pytest.mark.parametrize(
    ("format", "bits", "message"),
    [
        ("nf4-b64", 8, "the levels of nf4-b64 are none"),
        ("int4-b24", 8, "blocks of 24"),
        ("int4-b64", 4, "activations have 8 or 16 bits, not 4"),
    ],
)
def test_activations_that_no_product_takes_are_refused(format: str, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(format, bits=bits)


@pytest.mark.parametrize("format", ["int2-b32", "vq2c4"])
def test_outlier_columns_take_part_in_16_bits(format: str) -> None:
    weight = some(24, 96)
    weight[:, [3, 50]] *= 40
    _, packed = quantize_linears(model(), "int2-b16", "outliers", np.zeros((2, 16), dtype=np.int64))
    assert any(one.outlier_columns is not None for one in packed.values())
    plain, columns = quantize(weight, format), torch.tensor([3, 50], dtype=torch.int32)
    kept = type(plain)(plain.format, plain.shape, plain.dtype, **plain.arrays, outlier_columns=columns,
                       outliers=weight[:, [3, 50]].half())  # fmt: skip
    made, x = QuantizedLinear(kept), some(3, 96, seed=1)
    torch.testing.assert_close(made(x), F.linear(x, kept.dequantize()), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(made.dequantize(), kept.dequantize(), rtol=1e-6, atol=0)
    assert made.bfloat16().outliers is not None
    assert made.outliers.dtype is torch.float16


def test_a_wrong_length_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"takes 96 features, and x of shape \(2, 95\) has others"):
        layer("nf4-b64")(some(2, 95))
    with pytest.raises(ValueError, match=r"takes 96 features, and x of shape \(\) has others"):
        layer("nf4-b64")(torch.ones(()))


def test_a_type_that_is_no_product_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not torch\.int64"):
        layer("nf4-b64")(torch.ones(96, dtype=torch.int64))


@pytest.mark.parametrize("wrong", [nn.Conv1d(4, 4, 1), nn.ReLU()])
def test_other_layers_are_refused(wrong: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"not {type(wrong).__name__}"):
        QuantizedLinear.from_linear(wrong, "nf4")


def test_a_transposed_layer_is_taken() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(some(96, 24)), nn.Parameter(some(24, seed=2))

    plain, x = Conv1D(), some(3, 96, seed=1)
    made = QuantizedLinear.from_linear(plain, "int8-row")
    assert error(made(x), (x @ plain.weight + plain.bias).detach().double()) < 0.02


@pytest.mark.parametrize(
    ("format", "says"), [("nf4-b64", "path="), ("int4-b24", "dequantized: .*blocks of 24 weights")]
)
def test_a_layer_says_how_it_multiplies(format: str, says: str) -> None:
    assert re.search(rf"in_features=96, out_features=24, .*format={format}.*{says}", repr(layer(format)))


def model() -> Transformer:
    made = Transformer(Shape(width=64, depth=2, context=16)).initialise(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * some(*weight.shape, seed=1)
    return made.eval()


@pytest.mark.parametrize("format", ["nf4-b64", "int3-b32-zp", "vq2c8"])
@torch.no_grad()
def test_a_model_runs_from_packed_bits(format: str) -> None:
    prepared, packed = quantize_linears(model(), format)
    expected, tokens = copy.deepcopy(prepared), torch.arange(16)[None]
    fill(expected, packed)
    made = replace_linears(prepared, packed)
    assert made is prepared
    assert sum(isinstance(module, QuantizedLinear) for module in made.modules()) == 8
    assert not list(block_linears(made))
    assert not any(module.training for module in made.modules())
    torch.testing.assert_close(made(tokens), expected(tokens), rtol=1e-3, atol=1e-3)


def test_the_memory_of_a_layer_is_that_of_its_bits() -> None:
    made = layer("nf3-b64", rows=512, columns=1024, bias=False)
    promised = Format.parse("nf3-b64").bits_per_weight((512, 1024)) * 512 * 1024 / 8
    assert sum(buffer.nbytes for buffer in made.buffers()) == pytest.approx(promised, rel=1e-3)
    assert not list(made.parameters())


def test_a_weight_of_another_shape_does_not_take_a_layers_place() -> None:
    with pytest.raises(ValueError, match=r"blocks.0.up is no linear layer with a weight \(24, 96\)"):
        replace_linears(model(), {"blocks.0.up": quantize(some(24, 96), "nf4")})

import copy

import pytest
import torch

from kbitlib.models.layers import block_linears
from kbitlib.models.quantized import QuantizedLinear, quantized_copy
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.quant import Format, quantize

SHAPE = Shape(width=24, depth=2, context=16)


@pytest.fixture
def model() -> Transformer:
    made = Transformer(SHAPE).initialise(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return made


def test_all_and_only_the_weights_of_the_blocks_are_quantized(model: Transformer) -> None:
    names = [name for name, _ in block_linears(model)]
    assert len(names) == 4 * SHAPE.depth
    assert all(name.startswith("blocks.") for name in names)
    quantized, size = quantized_copy(model, "int2-b64")
    assert size.quantized_weights == SHAPE.params_nonemb
    assert size.other_weights == SHAPE.params - SHAPE.params_nonemb
    assert torch.equal(quantized.embedding.weight, model.embedding.weight)
    assert torch.equal(quantized.unembedding.weight, model.unembedding.weight)
    for name, linear in block_linears(quantized):
        assert torch.equal(linear.weight, quantize(model.get_submodule(name).weight, "int2-b64").dequantize())


def test_the_original_stays_as_it_is(model: Transformer) -> None:
    before = copy.deepcopy(model.state_dict())
    quantized_copy(model, "nf3-b32")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bits_are_those_that_the_format_promises(model: Transformer) -> None:
    _, size = quantized_copy(model, "nf3-b32")
    promised = sum(
        Format.parse("nf3-b32").bits_per_weight(tuple(linear.weight.shape)) * linear.weight.numel()
        for _, linear in block_linears(model)
    )
    assert size.quantized_bits == promised
    assert size.total_bits_all == size.quantized_bits + 16 * (SHAPE.params - SHAPE.params_nonemb)


def test_a_layer_with_nan_is_refused() -> None:
    linear = torch.nn.Linear(8, 8)
    linear.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"(?i)nan"):
        QuantizedLinear.from_linear(linear, "int4-b64")

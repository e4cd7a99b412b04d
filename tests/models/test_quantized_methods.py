"""Every method on a whole model: what is quantized, in which order, and what it takes."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kbitlib.methods.calibration import collect
from kbitlib.methods.gptq import gptq
from kbitlib.models.layers import block_linears, weight_of
from kbitlib.models.pretrained import Logits
from kbitlib.models.quantized import CALIBRATED, METHODS, quantize_linears, quantized_copy
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.quant import quantize

SHAPE = Shape(width=16, depth=3, context=16)
TOKENS = np.random.Generator(np.random.Philox(0)).integers(0, 256, (40, 16))


@pytest.fixture
def model() -> Transformer:
    made = Transformer(SHAPE).initialise(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return made


def format_for(method: str) -> str:
    return "int3-b16-zpf" if method == "hqq" else "int3-b16"


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_quantizes_the_blocks_of_a_copy(model: Transformer, method: str) -> None:
    before = copy.deepcopy(model.state_dict())
    prepared, packed = quantize_linears(model, format_for(method), method, TOKENS)
    quantized, size = quantized_copy(model, format_for(method), method, TOKENS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(packed) == [name for name, _ in block_linears(prepared)]
    for name, layer in block_linears(quantized):
        assert torch.equal(weight_of(layer), packed[name].dequantize())
    assert size.quantized_weights == SHAPE.params_nonemb
    assert size.quantized_bits == 8 * sum(weight.nbytes for weight in packed.values())
    assert size.other_weights == SHAPE.params - SHAPE.params_nonemb
    full, rounded = logits(prepared), logits(quantized)
    torch.testing.assert_close(full, logits(model), rtol=1e-4, atol=1e-4)  # float32 sums in another order
    assert 0 < (rounded - full).norm() < full.norm()


def test_rounding_to_nearest_is_the_default(model: Transformer) -> None:
    _, packed = quantize_linears(model, "nf3-b16")
    for name, layer in block_linears(model):
        assert torch.equal(packed[name].dequantize(), quantize(weight_of(layer), "nf3-b16").dequantize())


@pytest.mark.parametrize("k", [2, 3, 4])
def test_gptq_changes_the_output_less_than_rounding(model: Transformer, k: int) -> None:
    full = logits(model)
    better, worse = (logits(quantized_copy(model, f"int{k}-b16", m, TOKENS)[0]) - full for m in ("gptq", "rtn"))
    assert better.norm() < worse.norm()


def test_gptq_sees_each_block_behind_the_quantized_ones(model: Transformer) -> None:
    _, packed = quantize_linears(model, "int2-b16", "gptq", TOKENS)
    reader = copy.deepcopy(model)
    batches = list(torch.from_numpy(TOKENS).split(32))
    for block in range(SHAPE.depth):
        layers = {name: layer for name, layer in block_linears(reader) if name.startswith(f"blocks.{block}.")}
        statistics = collect(reader, batches, layers)
        for name, layer in layers.items():
            found = gptq(weight_of(layer), statistics[name], "int2-b16").dequantize()
            assert torch.equal(packed[name].dequantize(), found)
            weight_of(layer).copy_(found)


def test_outliers_are_counted(model: Transformer) -> None:
    with torch.no_grad():
        model.blocks[0].up.weight[5] *= 100
    _, packed = quantize_linears(model, "int3-b16", "outliers", TOKENS)
    assert 5 in packed["blocks.0.down"].arrays["outlier_columns"]
    plain, kept = (quantized_copy(model, "int3-b16", method, TOKENS)[1] for method in ("rtn", "outliers"))
    columns = {name: len(weight.arrays["outlier_columns"]) for name, weight in packed.items()}
    extra = sum(n * (32 + 16 * packed[name].shape[0]) for name, n in columns.items())
    assert kept.quantized_bits == plain.quantized_bits + extra


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("calibration", [None, np.zeros((0, 16), np.int64), np.zeros(16, np.int64)])
def test_missing_calibration_is_refused(model: Transformer, method: str, calibration: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{method} needs calibration tokens \(n, time\)$"):
        quantized_copy(model, "int4", method, calibration)


def test_what_is_refused_names_the_method_or_the_layer(model: Transformer) -> None:
    with pytest.raises(ValueError, match="'best' is unknown; allowed are rtn, gptq, awq, hqq, rotation, outliers"):
        quantized_copy(model, "int4", "best")
    with pytest.raises(ValueError, match=r"layer blocks\.0\.qkv: hqq takes integers with a float zero point"):
        quantized_copy(model, "int4", "hqq")
    with pytest.raises(ValueError, match=r"layer blocks\.0\.qkv: gptq takes scalar formats"):
        quantized_copy(model, "vq2c8", "gptq", TOKENS)


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: 'kbit-lab[hub]'")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=256, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return Logits(transformers.GPT2LMHeadModel(config)).eval()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "rotation"])
def test_a_model_that_keeps_its_weights_transposed(gpt2: nn.Module, method: str) -> None:
    prepared, packed = quantize_linears(gpt2, format_for(method), method, TOKENS)
    quantized, _ = quantized_copy(gpt2, format_for(method), method, TOKENS)
    assert len(packed) == 8
    assert packed["inner.transformer.h.1.mlp.c_proj"].shape == (16, 64)
    for name, layer in block_linears(quantized):
        assert torch.equal(weight_of(layer), packed[name].dequantize())
    torch.testing.assert_close(logits(prepared), logits(gpt2), rtol=1e-4, atol=1e-4)  # float32 sums in another order
    assert 0 < (logits(quantized) - logits(gpt2)).norm() < logits(gpt2).norm()

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kbitlib.methods.awq import output_error
from kbitlib.methods.calibration import InputStatistics, collect
from kbitlib.models.activations import quantize_activations
from kbitlib.models.layers import block_linears, weight_of
from kbitlib.models.pretrained import Logits
from kbitlib.models.quantized import quantized_copy
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.models.transforms import awq_scaled, rotated, smoothed
from kbitlib.quant import quantize

TOKENS = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0))
# Every model is float64, but RMS norms, rotary embeddings and softmax in transformers compute in float32.
OURS, THEIRS = 1e-12, 1e-5

SIZES = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 64}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA),
    "llama-grouped": ("LlamaConfig", {**LLAMA, "num_key_value_heads": 2}),
    "llama-tied": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 48}),
    "opt-gelu": ("OPTConfig", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 48, "activation_function": "gelu"}),
    "opt-after": ("OPTConfig", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 48, "do_layer_norm_before": False}),
    "gpt2": ("GPT2Config", {"vocab_size": 50, "n_embd": 48, "n_layer": 2, "n_head": 4}),
    "neox": ("GPTNeoXConfig", {**SIZES, "intermediate_size": 64}),
    "neox-serial": ("GPTNeoXConfig", {**SIZES, "intermediate_size": 64, "use_parallel_residual": False}),
    "bloom": ("BloomConfig", {"vocab_size": 50, "hidden_size": 48, "n_layer": 2, "n_head": 4}),
    "bloom-after": (
        "BloomConfig",
        {
            **{"vocab_size": 50, "hidden_size": 48, "n_layer": 2, "n_head": 4},
            "apply_residual_connection_post_layernorm": True,
        },
    ),
}
SCALED = {  # block linears whose input is scaled
    "ours": ("out", "down"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "llama-grouped": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
    "llama-tied": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "llama-biased": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "opt-gelu": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1"),
    "opt-after": ("out_proj", "fc2"),
    "gpt2": ("c_attn", "attn.c_proj", "c_fc"),
    "neox": ("query_key_value", "attention.dense", "dense_h_to_4h"),
    "neox-serial": ("query_key_value", "attention.dense", "dense_h_to_4h"),
    "bloom": ("query_key_value", "self_attention.dense", "dense_h_to_4h"),
    "bloom-after": ("self_attention.dense",),
}
ROTATED = ["ours", "llama", "llama-grouped", "llama-tied", "llama-biased"]


def build(kind: str) -> nn.Module:
    """A small model with every parameter, gains and biases too, away from where it starts."""
    torch.manual_seed(0)
    if kind == "ours":
        model: nn.Module = Transformer(Shape(width=48, depth=2, heads=4, context=16)).initialise(0)
    else:
        transformers = pytest.importorskip("transformers", reason="the extra hub (transformers) is not installed")
        name, sizes = CONFIGS[kind]
        model = Logits(transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.double().eval()


def statistics_of(model: nn.Module) -> dict[str, InputStatistics]:
    return collect(model, [TOKENS], dict(block_linears(model)))


def tolerance(kind: str) -> float:
    return OURS if kind == "ours" else THEIRS


@torch.no_grad()
def difference(model: nn.Module, other: nn.Module) -> float:
    """Root mean square of the change, over that of the logits."""
    logits = model(TOKENS)
    return float((other(TOKENS) - logits).norm() / logits.norm())


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("method", ["smooth", "awq"])
def test_scaling_changes_the_weights_and_not_the_function(kind: str, method: str) -> None:
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    statistics = statistics_of(model)
    other = smoothed(model, statistics) if method == "smooth" else awq_scaled(model, statistics, "int2-b16")
    assert difference(model, other) < tolerance(kind)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if method == "smooth":
        after = statistics_of(other)
        changed = {name for name in after if not torch.allclose(after[name].max_abs, statistics[name].max_abs)}
        expected = {name for name in after if name.endswith(tuple("." + end for end in SCALED[kind]))}
        assert changed == expected


def test_smoothing_divides_the_inputs_by_equation_4() -> None:
    model = build("llama")
    statistics = statistics_of(model)
    after = statistics_of(smoothed(model, statistics, alpha=0.3))
    attention = "inner.model.layers.0.self_attn."
    largest = torch.stack(
        [weight_of(model.get_submodule(attention + name)).abs().amax(0) for name in ("q_proj", "k_proj", "v_proj")]
    ).amax(0)
    found = statistics[attention + "q_proj"].max_abs / after[attention + "q_proj"].max_abs
    assert torch.allclose(found.double(), statistics[attention + "q_proj"].max_abs ** 0.3 / largest**0.7, rtol=1e-5)


@pytest.mark.parametrize("kind", ROTATED)
def test_rotating_changes_the_weights_and_not_the_function(kind: str) -> None:
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    other = rotated(model, seed=1)
    assert difference(model, other) < tolerance(kind)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    after = dict(block_linears(other))
    assert all(not torch.allclose(weight_of(linear), weight_of(after[name])) for name, linear in block_linears(model))


def test_a_shared_embedding_becomes_two() -> None:
    model = build("llama-tied")
    inner = rotated(model).inner
    assert inner.lm_head.weight is not inner.model.embed_tokens.weight
    assert not inner.config.tie_word_embeddings
    assert model.inner.lm_head.weight is model.inner.model.embed_tokens.weight
    assert model.inner.config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["opt", "gpt2", "neox", "bloom"])
def test_layer_norms_are_not_rotated(kind: str) -> None:
    with pytest.raises(ValueError, match="LayerNorm"):
        rotated(build(kind))


def test_a_head_without_a_hadamard_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="order 6 "):
        rotated(Transformer(Shape(width=24, depth=1, heads=4, context=16)))


@pytest.mark.parametrize("kind", ["BertLMHeadModel", "Linear"])
def test_unknown_architectures_are_refused_by_name(kind: str) -> None:
    model: nn.Module = nn.Linear(8, 8)
    if kind != "Linear":
        transformers = pytest.importorskip("transformers", reason="the extra hub (transformers) is not installed")
        config = transformers.BertConfig(**SIZES, intermediate_size=64, is_decoder=True)
        model = Logits(transformers.BertLMHeadModel(config))
    for transform in (rotated, lambda m: smoothed(m, {}), lambda m: awq_scaled(m, {}, "int4")):
        with pytest.raises(ValueError, match=f"not {kind}"):
            transform(model)


def test_missing_statistics_and_wrong_shares_are_refused() -> None:
    model = build("ours")
    with pytest.raises(ValueError, match=r"layer blocks\.0\.out"):
        smoothed(model, {})
    with pytest.raises(ValueError, match=r"not 1\.5"):
        smoothed(model, statistics_of(model), alpha=1.5)
    with pytest.raises(ValueError, match="unknown format"):
        awq_scaled(model, statistics_of(model), "int1000")


def outliers_inside(model: nn.Module, factor: float) -> Transformer:
    """The same function with a few hidden channels that are `factor` as large, and outlier rows in the weights."""
    assert isinstance(model, Transformer)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.blocks:
            block.up.weight[[3, 70]] *= factor**0.5
            block.down.weight[:, [3, 70]] /= factor
            block.qkv.weight[[100, 130]] *= factor
            block.out.weight[:, [100 - 96, 130 - 96]] /= factor
    return model


def test_smoothing_lowers_the_error_of_w8a8_on_outlier_channels() -> None:
    model = outliers_inside(build("ours"), 100)
    statistics = statistics_of(model)
    errors = [
        difference(model, quantize_activations(quantized_copy(m, "int8-row")[0], "int8-row"))
        for m in (model, smoothed(model, statistics))
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("format", ["int2-b16", "int4-b16"])
def test_awq_lowers_the_error_of_the_outputs_and_never_raises_it(format: str) -> None:
    model = build("llama-grouped")
    scaled = awq_scaled(model, statistics_of(model), format)
    totals = []
    for layer in ("inner.model.layers.0.", "inner.model.layers.1."):
        # not gate and up, whose own output is scaled
        for readers in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"]):
            names = [layer + reader for reader in readers]
            plain, found = (sum(layer_error(m, name, format) for name in names) for m in (model, scaled))
            assert found <= plain * 1.001  # statistics and blocks are those of inputs and weights scaled in float64
            totals.append((plain, found))
    assert sum(found for _, found in totals) < 0.97 * sum(plain for plain, _ in totals)


def layer_error(model: nn.Module, name: str, format: str) -> float:
    weight = weight_of(model.get_submodule(name))
    return output_error(weight, quantize(weight, format).dequantize(), statistics_of(model)[name])


def test_rotation_spreads_outliers_and_lowers_the_error_of_rounding() -> None:
    model = build("ours")
    assert isinstance(model, Transformer)
    with torch.no_grad():
        for block in model.blocks:
            block.qkv.weight[:, [7, 20]] *= 20
            block.up.weight[:, [7, 20]] *= 20
    for name, linear in block_linears(rotated(model)):
        if name.endswith(("qkv", "up")):
            plain, turned = weight_of(model.get_submodule(name)), weight_of(linear)
            assert kurtosis(turned) < 0.3 * kurtosis(plain)
            assert relative_error(turned) < 0.8 * relative_error(plain)


def kurtosis(weight: Tensor) -> float:
    return float(((weight - weight.mean()) ** 4).mean() / weight.var() ** 2)


def relative_error(weight: Tensor) -> float:
    return float((quantize(weight, "int4-b48").dequantize() - weight).norm() / weight.norm())

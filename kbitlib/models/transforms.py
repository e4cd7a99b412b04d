"""Scales and rotations that one layer undoes for the next, so that both lose less when rounded; where: `LAYOUTS`."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from kbitlib.methods.awq import awq_scale
from kbitlib.methods.calibration import InputStatistics
from kbitlib.methods.rotation import hadamard
from kbitlib.models.layers import weight_of
from kbitlib.quant import Format

Scale = Callable[[Sequence[Tensor], InputStatistics], Tensor]  # weights (out, in) of one input -> (in,)


@dataclass(frozen=True)
class Layout:
    """How the layers of a block hang together; names are relative to the block.

    reads: a norm, "" for norms without a gain, and all that reads what it puts out, linear layers parted by spaces.
    values: what makes the attention's values; mixture: what reads their mixture. up, down: the same in the feed-forward
    part, if the function between passes scales on: a hidden unit grows by c^power when its input grows by c. head_size:
    where the block keeps it, if query, key and value rows are fused, head by head.
    """

    reads: dict[str, str]
    values: str
    mixture: str
    up: str = ""
    down: str = ""
    power: int = 1
    head_size: str = ""


def _fused(attention: str, head_size: str) -> Layout:
    qkv, norms = f"{attention}.query_key_value", ("input_layernorm", "post_attention_layernorm")
    reads = dict(zip(norms, (qkv, "mlp.dense_h_to_4h"), strict=True))
    return Layout(reads, qkv, f"{attention}.dense", head_size=f"{attention}.{head_size}")


QKV, V = "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.v_proj"
LAYOUTS = {
    "Block": Layout({"": "qkv up"}, "qkv", "out", "up", "down", power=2),  # our own: relu(c x)^2 = c^2 relu(x)^2
    "LlamaDecoderLayer": Layout(
        {"input_layernorm": QKV, "post_attention_layernorm": "mlp.gate_proj mlp.up_proj"},
        *(V, "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
    "OPTDecoderLayer": Layout(
        {"self_attn_layer_norm": QKV, "final_layer_norm": "fc1"}, V, "self_attn.out_proj", "fc1", "fc2"
    ),
    "GPT2Block": Layout({"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"}, "attn.c_attn", "attn.c_proj"),
    "GPTNeoXLayer": _fused("attention", "head_size"),
    "BloomBlock": _fused("self_attention", "head_dim"),
}


def smoothed(model: nn.Module, statistics: dict[str, InputStatistics], alpha: float = 0.5) -> nn.Module:
    """A copy whose activations are easier to round: input channel j is divided by s_j, weights are multiplied by it.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), one where either is zero (SmoothQuant, Xiao et al. 2022,
    arXiv:2211.10438, equation 4). Taken are layers that read a norm with a gain; the attention's output layer, unless
    heads share values; the second feed-forward layer behind a gate, ReLU or squared ReLU. Others stay as they are.
    ``statistics`` by layer name. ValueError for an unknown architecture, missing statistics, alpha outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha, the share of the difficulty that goes to the weights, is 0 to 1, not {alpha}")

    def scale(weights: Sequence[Tensor], inputs: InputStatistics) -> Tensor:
        largest = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
        found = inputs.max_abs**alpha / largest ** (1 - alpha)
        return torch.where((inputs.max_abs > 0) & (largest > 0), found, 1.0)

    return _scaled(model, statistics, scale)


def awq_scaled(model: nn.Module, statistics: dict[str, InputStatistics], format: str | Format) -> nn.Module:
    """A copy whose input channels are scaled by `awq_scale`; takes what `smoothed` takes, ValueError too."""
    return _scaled(model, statistics, lambda weights, inputs: awq_scale(weights, inputs, format))


@torch.no_grad()
def _scaled(model: nn.Module, statistics: dict[str, InputStatistics], scale: Scale) -> nn.Module:
    """A copy with the scale (in,) found for each input multiplied into what reads it and divided out of its source."""
    model = copy.deepcopy(model)
    for name, block, layout in _blocks(model):
        for source, rows, readers, power in _neighbours(block, layout):
            if (first := f"{name}.{readers[0]}") not in statistics:
                raise ValueError(f"there are no input statistics of layer {first}")
            weights = [weight_of(block.get_submodule(reader)) for reader in readers]
            found = scale(weights, statistics[first]).to(weights[0])
            for weight in weights:
                weight *= found
            for written in _written(block.get_submodule(source)):
                written.t()[..., rows] /= found ** (1 / power)
    return model


def _neighbours(block: nn.Module, layout: Layout) -> Iterator[tuple[str, Any, list[str], int]]:
    """What writes, its rows that do, the linear layers that alone read it, and the power to which they find it."""
    apart = getattr(block, "do_layer_norm_before", True)  # not in OPT-350m: the residual stream reads its norms too
    if apart and not getattr(block, "apply_residual_connection_post_layernorm", False):
        for norm, readers in layout.reads.items():
            if getattr(block.get_submodule(norm), "weight", None) is not None:
                yield norm, slice(None), readers.split(), 1
    rows = torch.arange(len(weight_of(block.get_submodule(layout.values))))
    columns = weight_of(block.get_submodule(layout.mixture)).shape[1]
    if len(rows) >= columns:  # fewer where heads share values
        fused = rows.view(-1, 3, attrgetter(layout.head_size)(block))[:, 2].flatten() if layout.head_size else rows
        yield layout.values, fused[-columns:], [layout.mixture], 1
    if layout.up and isinstance(getattr(block, "activation_fn", nn.ReLU()), nn.ReLU):  # OPT names its function so
        yield layout.up, slice(None), [layout.down], layout.power


@torch.no_grad()
def rotated(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose residual stream and attention values are turned by random Hadamard matrices, which spreads outliers.

    Only what is free: gains go into the layers that read them, then all that reads or writes takes the rotation up
    (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456, section 4); what the second feed-forward layer reads is not turned.
    A shared embedding becomes two. ValueError for others than `Transformer` and Llama, and by `hadamard`.
    """
    model = copy.deepcopy(model)
    inner: Any = getattr(model, "inner", model)
    blocks = _blocks(inner)
    kind = type(blocks[0][1]).__name__
    if kind == "Block":
        heads, embedding, norm, unembedding = inner.shape.heads, inner.embedding, inner, inner.unembedding  # no gains
    elif kind == "LlamaDecoderLayer":
        heads, embedding, norm = inner.config.num_attention_heads, inner.get_input_embeddings(), inner.model.norm
        unembedding = inner.get_output_embeddings()
    else:
        raise ValueError(f"{type(inner).__name__} is not rotated: its LayerNorm subtracts a mean that rotations change")
    if unembedding.weight is embedding.weight:
        unembedding.weight = nn.Parameter(embedding.weight.clone())
        inner.config.tie_word_embeddings = False
    turn = hadamard(embedding.weight.shape[1], seed).to(embedding.weight.device)
    embedding.weight.copy_(embedding.weight.double() @ turn)
    _turn_inputs(norm, [unembedding], turn)
    for _, block, layout in blocks:
        for name, readers in layout.reads.items():
            _turn_inputs(block.get_submodule(name), map(block.get_submodule, readers.split()), turn)
        values, mixture, down = map(block.get_submodule, (layout.values, layout.mixture, layout.down))
        columns = weight_of(mixture).shape[1]
        head = hadamard(columns // heads, seed + 1).to(turn.device)
        weight_of(mixture).copy_((weight_of(mixture).double().view(-1, len(head)) @ head).view(-1, columns))
        by_head = [channels for written in _written(values) for channels in written[-columns:].split(len(head))]
        outputs = [(written, turn) for written in _written(mixture) + _written(down)]
        for written, matrix in outputs + [(channels, head) for channels in by_head]:
            written.copy_(matrix.T @ written.double())
    return model


def _turn_inputs(norm: nn.Module, readers: Iterable[nn.Module], turn: Tensor) -> None:
    """Fold the gain of a norm, if it has one, into the layers that read it, and turn what they read."""
    gain = getattr(norm, "weight", torch.ones(()))
    for weight in map(weight_of, readers):
        weight.copy_((weight.double() * gain) @ turn)
    gain.fill_(1)


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module, Layout]]:
    """A model's blocks by name; ValueError for an architecture whose structure is not known here."""
    kinds = [(name, module, type(module).__name__) for name, module in model.named_modules()]
    if found := [(name, module, LAYOUTS[kind]) for name, module, kind in kinds if kind in LAYOUTS]:
        return found
    kind = type(getattr(model, "inner", model)).__name__
    raise ValueError(f"Transformer, Llama, OPT, GPT-2, GPT-NeoX and BLOOM can be scaled or rotated, not {kind}")


def _written(module: nn.Module) -> list[Tensor]:
    """What makes a module's output: weight (out, in), or a norm's gain (out,), and, where there is one, bias (out,)."""
    bias = getattr(module, "bias", None)
    return [weight_of(module)] if bias is None else [weight_of(module), bias.detach()]

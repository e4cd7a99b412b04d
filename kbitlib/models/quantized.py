"""Models whose linear layers are held in k bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kbitlib.models.transformer import Transformer
from kbitlib.quant import Format, QuantizedTensor, quantize

EMBEDDING_BITS = 16  # what is not quantized is counted at the width it is usually deployed in


class QuantizedLinear(nn.Module):
    """A linear layer that keeps its weight (out, in) packed, and multiplies by what the codes stand for."""

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    @classmethod
    def from_linear(cls, linear: nn.Linear, format: str | Format) -> QuantizedLinear:
        """Quantize a layer's weight by rounding to nearest.

        Raises ValueError on NaN, infinity, an unknown format, or a layer that is not linear.
        """
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"only nn.Linear can be quantized so, not {type(linear).__name__}")
        return cls(quantize(linear.weight.detach(), format), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out), in the type of x."""
        return F.linear(x, self.weight.dequantize(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, format={self.weight.format}"


@dataclass(frozen=True)
class Size:
    """What a quantized model takes: bits are those of everything stored."""

    quantized_weights: int
    quantized_bits: int
    other_weights: int

    @property
    def bits_per_weight(self) -> float:
        return self.quantized_bits / self.quantized_weights

    @property
    def total_bits_all(self) -> int:
        """Bits of the whole model, embeddings and all else that is not quantized at 16 bits."""
        return self.quantized_bits + EMBEDDING_BITS * self.other_weights


def block_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers inside a model's blocks, by name: what is quantized. Embedding and output projection are
    not."""
    output = model.unembedding if isinstance(model, Transformer) else cast(Any, model).get_output_embeddings()
    for name, module in model.named_modules():
        if module is not output and is_linear(module):
            yield name, module


def is_linear(module: nn.Module) -> bool:
    """True of `nn.Linear` and of GPT-2's ``Conv1D``, which is a linear layer that keeps its weight transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def weight_of(module: nn.Module) -> Tensor:
    """A linear layer's weight as (out, in), so that blocks run along the input whatever the layer's own layout."""
    weight = module.get_parameter("weight").detach()
    return weight if isinstance(module, nn.Linear) else weight.T


@torch.no_grad()
def quantized_copy(model: nn.Module, format: str | Format) -> tuple[nn.Module, Size]:
    """A copy of a model whose block weights are what their packed k-bit form stands for, and the size of that form.

    The copy holds the dequantized values, so evaluating it costs what the original costs; `QuantizedLinear` keeps the
    codes.
    """
    format = Format.parse(str(format))
    quantized = copy.deepcopy(model)
    weights = bits = 0
    for name, module in block_linears(quantized):
        try:
            packed = quantize(weight_of(module), format)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
        weight_of(module).copy_(packed.dequantize())
        weights += weight_of(module).numel()
        bits += 8 * packed.nbytes
    others = sum(p.numel() for p in quantized.parameters()) - weights
    return quantized, Size(weights, bits, others)

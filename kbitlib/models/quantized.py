"""Models whose linear layers are held in k bits."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kbitlib.methods.calibration import InputStatistics, collect
from kbitlib.methods.gptq import gptq
from kbitlib.methods.hqq import hqq
from kbitlib.methods.outliers import split_outliers
from kbitlib.models.layers import block_linears, weight_of
from kbitlib.models.transforms import awq_scaled, rotated
from kbitlib.quant import Format, QuantizedTensor, quantize

METHODS = ("rtn", "gptq", "awq", "hqq", "rotation", "outliers")
CALIBRATED = ("gptq", "awq", "outliers")  # those that look at what the layers' inputs are
BLOCK = re.compile(r"(.*?\.)?\d+(?=\.)")  # a layer's name up to the first number, such as "transformer.h.3"
Quantizer = Callable[[Tensor, Any, Format], QuantizedTensor]
TOKENS_AT_ONCE = 4096  # of calibration text: their logits are held, and vocabularies are large
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


@torch.no_grad()
def quantize_linears(
    model: nn.Module, format: str | Format, method: str = "rtn", calibration: np.ndarray | None = None
) -> tuple[nn.Module, dict[str, QuantizedTensor]]:
    """A copy of a model, prepared as the method asks (scaled, rotated), and its block linears' packed weights, by name.

    calibration: tokens (n, time), which gptq, awq and outliers need. gptq takes each block's statistics with the blocks
    before it quantized (Frantar et al. 2022, section 4). ValueError for an unknown method, missing calibration, and as
    `quantize` and the method, naming the layer.
    """
    format = format if isinstance(format, Format) else Format.parse(format)
    if method not in METHODS:
        raise ValueError(f"the method {method!r} is unknown; allowed are {', '.join(METHODS)}")
    batches: list[Tensor] = []
    if method in CALIBRATED:
        if calibration is None or calibration.ndim != 2 or not calibration.size:
            raise ValueError(f"{method} needs calibration tokens (n, time)")
        tokens = torch.from_numpy(calibration.astype(np.int64)).to(next(model.parameters()).device)
        batches = list(tokens.split(max(1, TOKENS_AT_ONCE // tokens.shape[1])))
    if method == "awq":
        prepared = awq_scaled(model, collect(model, batches, dict(block_linears(model))), format)
    else:
        prepared = rotated(model) if method == "rotation" else copy.deepcopy(model)
    reader = copy.deepcopy(prepared) if method == "gptq" else prepared  # reads the text, more and more quantized
    packed: dict[str, QuantizedTensor] = {}
    for _, block in groupby(block_linears(reader), lambda named: (BLOCK.match(named[0]) or named)[0]):
        layers = dict(block)
        statistics = collect(reader, batches, layers) if method in ("gptq", "outliers") else {}
        found = {name: _quantized(name, layer, statistics.get(name), format, method) for name, layer in layers.items()}
        if method == "gptq":
            fill(reader, found)
        packed |= found
    return prepared, packed


def _quantized(
    name: str, layer: nn.Module, statistics: InputStatistics | None, format: Format, method: str
) -> QuantizedTensor:
    quantizers: dict[str, Quantizer] = {"gptq": gptq, "hqq": hqq, "outliers": split_outliers}
    try:
        better = quantizers.get(method)
        return better(weight_of(layer), statistics, format) if better else quantize(weight_of(layer), format)
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from None


@torch.no_grad()
def fill(model: nn.Module, packed: dict[str, QuantizedTensor]) -> None:
    """Set the named linear layers' weights to what their packed form stands for."""
    for name, weight in packed.items():
        weight_of(model.get_submodule(name)).copy_(weight.dequantize())


def quantized_copy(
    model: nn.Module, format: str | Format, method: str = "rtn", calibration: np.ndarray | None = None
) -> tuple[nn.Module, Size]:
    """A copy of a model whose block weights are what their packed k-bit form stands for, and the size of that form.

    The copy holds the dequantized values, so evaluating it costs what the original costs; `QuantizedLinear` keeps the
    codes. Arguments and errors are those of `quantize_linears`.
    """
    quantized, packed = quantize_linears(model, format, method, calibration)
    fill(quantized, packed)
    weights = sum(prod(weight.shape) for weight in packed.values())
    others = sum(p.numel() for p in quantized.parameters()) - weights
    return quantized, Size(weights, 8 * sum(weight.nbytes for weight in packed.values()), others)

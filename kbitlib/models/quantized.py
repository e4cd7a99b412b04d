"""Models whose linear layers are held in k bits."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import groupby
from math import prod
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kbitlib.kernels import PackedWeight, decode, linear, obstacle, pack, path
from kbitlib.methods.calibration import InputStatistics, collect
from kbitlib.methods.gptq import gptq
from kbitlib.methods.hqq import hqq
from kbitlib.methods.outliers import split_outliers
from kbitlib.models.layers import block_linears, is_linear, weight_of
from kbitlib.models.transforms import awq_scaled, rotated
from kbitlib.quant import Format, QuantizedTensor, quantize

METHODS = ("rtn", "gptq", "awq", "hqq", "rotation", "outliers")
CALIBRATED = ("gptq", "awq", "outliers")  # those that look at what the layers' inputs are
BLOCK = re.compile(r"(.*?\.)?\d+(?=\.)")  # a layer's name up to the first number, such as "transformer.h.3"
Quantizer = Callable[[Tensor, Any, Format], QuantizedTensor]
TOKENS_AT_ONCE = 4096  # of calibration text: their logits are held, and vocabularies are large
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # that a buffer's bytes are seen as, by its item's size
EMBEDDING_BITS = 16  # what is not quantized is counted at the width it is usually deployed in


class QuantizedLinear(nn.Module):
    """A linear layer whose weight (out, in) stays packed in k bits, and whose products read the packed bits.

    Formats that products do not read (vectors, log levels, blocks of 24) are dequantized for each; the layer's `repr`
    says so, and why. Outlier columns take part in 16 bits. What is stored are buffers, which a change of the module's
    type leaves as they are; the state dict names the format, and another one's is refused with ValueError.
    """

    outlier_columns: Tensor | None
    outliers: Tensor | None

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None, activation_bits: int = 16) -> None:
        """activation_bits: 16, or 8 for products of integers, the rows of x being rounded to int8-row-fp32.

        ValueError for a tensor that is no matrix, and for 8 bits where the levels are no integers or are not read.
        """
        super().__init__()
        if len(weight.shape) != 2:
            raise ValueError(f"a linear layer's weight is a matrix (out, in), not {tuple(weight.shape)}")
        self.format, self.activation_bits = weight.format, activation_bits
        self.out_features, self.in_features = weight.shape
        self.obstacle = obstacle(self.format, self.in_features)
        inner = replace(weight, outlier_columns=None, outliers=None)
        stored: PackedWeight | QuantizedTensor = inner if self.obstacle else pack(inner)
        if activation_bits != 16:
            self._check_integers(stored)
        self._kind: Callable[..., PackedWeight | QuantizedTensor] = type(stored)
        self._rest: dict[str, Any] = {}  # what is no tensor
        for field in fields(stored):
            if isinstance(value := getattr(stored, field.name), Tensor):
                self.register_buffer(field.name, value)
            else:
                self._rest[field.name] = value
        self._names = tuple(self._buffers)
        self.register_buffer("outlier_columns", weight.outlier_columns)
        self.register_buffer("outliers", weight.outliers)
        self.bias = bias
        self._kept: PackedWeight | QuantizedTensor | None = stored

    @classmethod
    def from_linear(cls, linear: nn.Module, format: str | Format, activation_bits: int = 16) -> QuantizedLinear:
        """Quantize the weight of an `nn.Linear`, or of GPT-2's ``Conv1D``, by rounding to nearest.

        Raises ValueError on NaN, infinity, an unknown format, a layer that is not linear, and as the constructor.
        """
        if not is_linear(linear):
            raise ValueError(f"only nn.Linear and Conv1D can be quantized so, not {type(linear).__name__}")
        return cls(quantize(weight_of(linear), format), cast(Any, linear).bias, activation_bits)

    @property
    def weight(self) -> PackedWeight | QuantizedTensor:
        """The weight as it is stored, outlier columns apart."""
        kept = self._kept
        if kept is None or any(getattr(kept, name) is not self._buffers[name] for name in self._names):
            kept = self._kind(**self._rest, **{name: self._buffers[name] for name in self._names})
            self._kept = kept
        return kept

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out), in the type of x; ValueError for another length, and a type or device that the
        product does not take."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"the layer takes {self.in_features} features, and x of shape {tuple(x.shape)} has others")
        if self.outlier_columns is None or self.outliers is None:
            y = self._product(x)
        else:
            columns = self.outlier_columns.long()
            y = self._product(x.index_fill(-1, columns, 0)) + F.linear(x[..., columns], self.outliers.to(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _product(self, x: Tensor) -> Tensor:
        weight = self.weight
        if isinstance(weight, QuantizedTensor):
            return F.linear(x, weight.dequantize(x.dtype))
        return linear(x, weight, self.activation_bits)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in) that products multiply by, outlier columns in their places."""
        weight = self.weight
        matrix = weight.dequantize(dtype) if isinstance(weight, QuantizedTensor) else decode(weight, dtype)
        if self.outlier_columns is not None and self.outliers is not None:
            matrix[:, self.outlier_columns] = self.outliers.to(dtype)
        return matrix

    def _check_integers(self, stored: PackedWeight | QuantizedTensor) -> None:
        if self.activation_bits != 8:
            raise ValueError(f"activations have 8 or 16 bits, not {self.activation_bits}")
        if isinstance(stored, QuantizedTensor):
            raise ValueError(f"8-bit activations need products that read the weight: {self.obstacle}")
        if not stored.counted:
            raise ValueError(
                f"8-bit activations are multiplied with integers, and the levels of {self.format} are none"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Let what moves a module move the buffers, seen as integers: scales and levels are never cast."""

        def unchanged(tensor: Tensor) -> Tensor:
            if all(tensor is not buffer for buffer in self._buffers.values()):
                return fn(tensor)
            integers = tensor.view(INTEGERS[tensor.itemsize])
            moved = fn(integers)
            if moved.dtype != integers.dtype:  # `Module.type` casts all there is
                moved = integers.to(moved.device)
            return moved.contiguous().view(tensor.dtype)

        self._kept = None
        super()._apply(unchanged, recurse)
        return self

    def get_extra_state(self) -> Tensor:
        """The format, and what numbers go with the buffers, as JSON in bytes: a tensor like all else in a state."""
        numbers = {name: value for name, value in self._rest.items() if isinstance(value, float)}
        text = json.dumps({"format": str(self.format), **numbers})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        found = json.loads(bytes(state.tolist()))
        if (name := found.pop("format")) != str(self.format):
            raise ValueError(f"the state is that of a layer in {name}, and this one is in {self.format}")
        self._rest |= found
        self._kept = None

    def extra_repr(self) -> str:
        weight = self.weight
        how = (
            f"dequantized: {self.obstacle}"
            if isinstance(weight, QuantizedTensor)
            else path(weight.codes.device, weight)
        )
        parts = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
        ]
        return ", ".join([*parts, f"format={self.format}", f"activation_bits={self.activation_bits}", f"path={how}"])


def replace_linears(model: nn.Module, packed: dict[str, QuantizedTensor], activation_bits: int = 16) -> nn.Module:
    """Put a `QuantizedLinear` in the place of each named linear layer, in the model itself, which is returned.

    packed: what `quantize_linears` gives. ValueError for a layer that is not linear, or of another shape.
    """
    for name, weight in packed.items():
        layer: Any = model.get_submodule(name)
        if not is_linear(layer) or weight_of(layer).shape != weight.shape:
            raise ValueError(f"{name} is no linear layer with a weight {tuple(weight.shape)}, but {layer}")
        model.set_submodule(name, QuantizedLinear(weight, layer.bias, activation_bits).train(layer.training))
    return model


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

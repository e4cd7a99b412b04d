"""What the inputs of linear layers look like on calibration text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of the inputs x (in,) of a linear layer, over `count` tokens.

    hessian: (in, in) float32, the mean of 2 x x^T, second derivative of the layer's squared output error by a row of
    its weight (Frantar et al. 2022, GPTQ, section 3). mean_abs, max_abs: (in,) float32, of |x|.
    """

    hessian: Tensor
    mean_abs: Tensor
    max_abs: Tensor
    count: int

    @classmethod
    def of(cls, x: Tensor) -> InputStatistics:
        """The statistics of inputs x (..., in), at least one."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(x):
            raise ValueError("a layer's statistics need at least one input")
        scaled, size = x * (2 / len(x)) ** 0.5, x.abs()
        return cls(scaled.T @ scaled, size.mean(0), size.amax(0), len(x))

    def merged(self, other: InputStatistics) -> InputStatistics:
        """The statistics of both inputs together."""
        share = other.count / (self.count + other.count)
        hessian, mean_abs = self.hessian.lerp(other.hessian, share), self.mean_abs.lerp(other.mean_abs, share)
        return InputStatistics(hessian, mean_abs, self.max_abs.maximum(other.max_abs), self.count + other.count)


@torch.no_grad()
def collect(model: nn.Module, batches: Iterable[Tensor], layers: Mapping[str, nn.Module]) -> dict[str, InputStatistics]:
    """The input statistics of some layers of a model, by name, while it reads batches of tokens (sequences, time).

    ValueError, naming the layer, where no input came to one.
    """
    found: dict[str, InputStatistics] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        batch = InputStatistics.of(inputs[0])
        found[name] = found[name].merged(batch) if name in found else batch

    handles = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in found]:
        raise ValueError(f"no input reached the layer {missing[0]} while the model read the calibration text")
    return found


def matrix_of(weight: Tensor, statistics: InputStatistics | None) -> Tensor:
    """A weight (out, in) in float32. ValueError if it is no finite floating matrix, or the statistics are of other
    inputs or not finite."""
    if weight.ndim != 2 or (statistics and len(statistics.mean_abs) != weight.shape[1]):
        inputs = len(statistics.mean_abs) if statistics else "in"
        raise ValueError(f"the weight's shape must be (out, {inputs}), not {tuple(weight.shape)}")
    matrix = weight.detach().float()
    if not weight.is_floating_point() or not matrix.isfinite().all():
        raise ValueError(f"the weight, {weight.dtype}, is to hold finite floating-point numbers")
    if statistics and not (statistics.max_abs.isfinite().all() and statistics.hessian.isfinite().all()):
        raise ValueError("the inputs that the statistics are of hold NaN or infinity, or are too large to be squared")
    return matrix

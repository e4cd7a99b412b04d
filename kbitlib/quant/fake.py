"""Fake quantization, for training through rounding."""

from typing import Any

import torch
from torch import Tensor

from kbitlib.quant.format import Format
from kbitlib.quant.tensor import quantize


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, format: str | Format) -> Tensor:
        return quantize(weight, format).dequantize()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def fake_quantize(weight: Tensor, format: str | Format) -> Tensor:
    """A weight rounded to a format, of the same shape and type, whose gradient passes as if it were not rounded.

    The straight-through estimator (Bengio et al. 2013, arXiv:1308.3432). ValueError as `quantize`.
    """
    rounded: Tensor = _StraightThrough.apply(weight, format)
    return rounded

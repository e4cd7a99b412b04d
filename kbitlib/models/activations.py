"""Activations in k bits: what the linear layers of a model read is rounded first."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kbitlib.methods.calibration import InputStatistics
from kbitlib.models.layers import block_linears
from kbitlib.quant import Format
from kbitlib.quant.blocks import TENSOR
from kbitlib.quant.fake import fake_quantize
from kbitlib.quant.grids import find_grids
from kbitlib.quant.rounding import decode, encode

STATIC = ("int", "intn", "nf", "float", "pot", "dynamic")  # kinds whose scale the largest magnitude alone determines


def quantize_activations(
    model: nn.Module, format: str | Format, static: dict[str, InputStatistics] | None = None
) -> nn.Module:
    """A copy whose block linears round their inputs: with weights in k bits, a W4A8, W8A8 or W4A4 model.

    Without ``static``, the inputs (in,) of each token find their own scale ("int8-row"), or one a block. With it, input
    statistics by layer name, all inputs of a layer share one ("int8-tensor"): the largest calibrated magnitude gets the
    highest level, what is larger is clipped. Scales are float32 where the format says fp16. Copies keep the rounding,
    the state dict does not. ValueError for a format not of the kind asked for, and for missing statistics.
    """
    format = Format.parse(str(format))
    plain = format.kind in STATIC and (format.zero, format.range, format.block) == ("none", "absmax", TENSOR)
    if static is not None and not plain:
        raise ValueError(f"{format} is no static format; allowed are {', '.join(STATIC)} with -tensor, as int8-tensor")
    if static is None and (format.block == TENSOR or format.learned or format.scale in ("e4m3", "dq")):
        raise ValueError(f"{format} has levels or scales that tokens share; without statistics take such as int8-row")
    if format.scale == "fp16":  # scales of activations are not stored, and those of tokens near zero do not fit
        format = replace(format, scale="fp32")
    model = copy.deepcopy(model)
    for name, module in block_linears(model):
        if static is not None and name not in static:
            raise ValueError(f"there are no input statistics of layer {name}")
        largest = None if static is None else float(static[name].max_abs.max())
        module.register_forward_pre_hook(partial(_round_input, format, largest))
    return model


def _round_input(format: Format, largest: float | None, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    if largest is None:
        return fake_quantize(x.reshape(-1, x.shape[-1]), format).view_as(x), *inputs[1:]
    (grid,), _rule = find_grids([torch.full((1, 1, 1), largest, device=x.device)], format)
    return decode(encode(x.float(), grid), grid).view_as(x).to(x.dtype), *inputs[1:]

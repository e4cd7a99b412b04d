"""Products with k-bit weights, y = x W^T, as one PyTorch operator with an implementation for every device.

What is notable: a plain reference that anyone can read, `reference`; the CPU's in C (`cpu`), the GPU's in Triton
(`triton`); all three read the same tiles (`layout`). `torch.compile` sees the operator whole, by its shape function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from kbitlib.kernels import cpu
from kbitlib.kernels.layout import ROWS, PackedWeight, Stored, unpack_codes
from kbitlib.quant.format import OUTER_BLOCK

LIBRARY = torch.library.Library("kbit", "DEF")
WEIGHT = (  # the fields of `Stored`
    "Tensor codes, Tensor scales, Tensor? scale_levels, Tensor? outer, Tensor? zeros, Tensor levels, "
    "float unit, float gain, int block, int rows, int columns"
)
LIBRARY.define(f"decode({WEIGHT}) -> Tensor")
LIBRARY.define(f"linear(Tensor x, {WEIGHT}, int activation_bits) -> Tensor")
TYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATION_BITS = (8, 16)
ACTIVATION_EXTENT = 127.5  # of the data type int8, whose levels are -128..127


def linear(x: Tensor, weight: PackedWeight, activation_bits: int = 16) -> Tensor:
    """x (..., in) times the transpose of a packed weight (out, in): (..., out), in the type of x.

    activation_bits: 16 takes x as it is; 8 rounds each of its rows to int8 (the format int8-row-fp32) and multiplies
    integers. ValueError for another type of x, another length or device, or levels that are no integers with 8 bits.
    """
    check(x, weight, activation_bits)
    if forward_ad._current_level >= 0 and (dual := forward_ad.unpack_dual(x)).tangent is not None:
        return forward_ad.make_dual(linear(dual.primal, weight, activation_bits), linear(dual.tangent, weight))
    if torch.compiler.is_compiling() or x.requires_grad:
        return torch.ops.kbit.linear(x, *weight.stored, activation_bits)
    with torch._C._AutoDispatchBelowAutograd():  # half of what calling the operator costs, where there is no gradient
        return torch.ops.kbit.linear.default(x, *weight.stored, activation_bits)


def check(x: Tensor, weight: PackedWeight, activation_bits: int) -> None:
    """ValueError, in one sentence, for an input that the product does not take."""
    if x.dtype not in TYPES:
        raise ValueError(f"a product takes float32, float16 or bfloat16, not {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != weight.columns:
        raise ValueError(f"the last dimension of the input is {weight.columns}, not that of {tuple(x.shape)}")
    if x.device != weight.codes.device:
        raise ValueError(f"input and weight lie on one device, not on {x.device} and {weight.codes.device}")
    if activation_bits not in ACTIVATION_BITS:
        raise ValueError(f"activations have 8 or 16 bits, not {activation_bits}")
    if activation_bits == 8 and not (torch.compiler.is_compiling() or weight.counted):
        raise ValueError("8-bit activations are multiplied with integers, and this weight's levels are not consecutive")


def path(device: torch.device | str, weight: PackedWeight) -> str:
    """Which implementation a product on a device takes, and why where it is not the fast one."""
    kind = torch.device(device).type
    if kind == "cpu":
        return cpu.path(weight.block)
    if kind == "cuda":
        if not torch.cuda.is_available():
            return "nothing: PyTorch finds no CUDA device"
        return "Triton" if triton_kernels() else "PyTorch: triton is not installed"
    return f"PyTorch: there is no kernel for {kind}"


def triton_kernels() -> Any:
    """The module of Triton kernels, None where Triton is not installed."""
    try:
        from kbitlib.kernels import triton
    except ImportError:
        return None
    return triton


def decode(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight (rows, columns) that is packed, computed in float32."""
    return torch.ops.kbit.decode(*weight.stored).to(dtype)


def decode_reference(weight: Stored) -> Tensor:
    """The operator `decode` in plain PyTorch: (rows, columns), float32."""
    codes, scales, scale_levels, outer, zeros, levels, unit, _, block, rows, columns = weight

    def spread(by_group: Tensor) -> Tensor:
        """(groups, blocks, 16) to what each weight of (rows, columns) takes."""
        if by_group.numel() == 1:
            return by_group
        return by_group.transpose(1, 2).flatten(0, 1)[:rows].repeat_interleave(block, 1)[:, :columns]

    scale = scales.float() if scale_levels is None else scale_levels[scales.int()]
    if outer is not None:
        groups, blocks, _ = scales.shape
        flat = torch.arange(groups * ROWS, device=codes.device).view(groups, 1, ROWS) * blocks
        which = (flat + torch.arange(blocks, device=codes.device)[:, None]) // OUTER_BLOCK
        scale = scale * outer[1 + which.clamp(max=len(outer) - 2)] + outer[0]  # rows that fill up have none
    decoded = levels[unpack_codes(codes, rows, columns).int()]
    if zeros is not None and zeros.dtype == torch.int16:
        bits = zeros[..., None] >> torch.arange(ROWS, dtype=torch.int16, device=codes.device) & 1
        places = torch.arange(zeros.shape[-1], device=codes.device)[:, None]
        decoded = decoded - spread((bits.int() << places).sum(-2).float())
    decoded = decoded * spread(scale)
    if zeros is not None and zeros.dtype != torch.int16:
        decoded = decoded + spread(zeros.float())
    return decoded * unit


def rounded_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., in) by rows in the format int8-row-fp32: whole numbers -128..127, float32, and scales (..., 1)."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / ACTIVATION_EXTENT
    inverse = torch.where(scale == 0, 0, 1 / scale)
    return (x * inverse).round().clamp(-128, 127), scale


def reference(x: Tensor, weight: Stored, activation_bits: int) -> Tensor:
    """The operator `linear` in plain PyTorch: the weight is decoded to float32, then multiplied."""
    decoded = decode_reference(weight)
    if activation_bits == 8:
        whole, scale = rounded_to_int8(x)
        return (F.linear(whole, decoded) * scale).to(x.dtype)
    return F.linear(x.float(), decoded).to(x.dtype)


def implementation(kind: str) -> Callable[[Tensor, Stored, int], Tensor]:
    """What multiplies on a kind of device."""
    if kind == "cpu" and cpu.available():
        return cpu.linear
    kernels = triton_kernels() if kind == "cuda" else None
    return kernels.linear if kernels else reference


def _linear(x: Tensor, *rest: Any) -> Tensor:
    weight, activation_bits = Stored._make(rest[:-1]), rest[-1]
    if x.dtype not in TYPES or x.shape[-1:] != (weight.columns,):
        raise ValueError(f"the product takes {weight.columns} columns of floats, not {x.dtype} {tuple(x.shape)}")
    return implementation(x.device.type)(x, weight, activation_bits)


def _decode(*fields: Any) -> Tensor:
    weight = Stored._make(fields)
    on_cpu = weight.codes.device.type == "cpu" and cpu.available()
    return cpu.decode(weight) if on_cpu else decode_reference(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors = inputs[:7]
    ctx.save_for_backward(*tensors)
    ctx.numbers = inputs[7:-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Only x has a gradient: codes are no numbers to be moved a little."""
    weight = torch.ops.kbit.decode(*ctx.saved_tensors, *ctx.numbers)
    return (gradient.float() @ weight).to(gradient.dtype), *(None,) * 12


LIBRARY.impl("decode", _decode, "CompositeExplicitAutograd")
LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("kbit::decode", lambda *weight: weight[5].new_empty(weight[-2:]), lib=LIBRARY)
torch.library.register_fake("kbit::linear", lambda x, *rest: x.new_empty((*x.shape[:-1], rest[-3])), lib=LIBRARY)
torch.library.register_autograd("kbit::linear", _backward, setup_context=_keep, lib=LIBRARY)

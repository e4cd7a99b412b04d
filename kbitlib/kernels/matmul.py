"""Products with k-bit weights, y = x W^T, as one PyTorch operator with an implementation for every device.

What is notable: a plain reference that anyone can read, `reference`; the CPU's in C (`cpu`), the GPU's in Triton
(`triton`); all three read the same tiles (`layout`). `torch.compile` sees the operator whole, by its shape function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from kbitlib.kernels import cpu
from kbitlib.kernels.layout import ROWS, PackedWeight, unpack_codes
from kbitlib.quant.format import OUTER_BLOCK

LIBRARY = torch.library.Library("kbit", "DEF")
LIBRARY.define(
    "decode(Tensor codes, Tensor scales, Tensor? scale_levels, Tensor? outer, Tensor? zeros, Tensor levels, "
    "float unit, int block, int rows, int columns) -> Tensor"
)
LIBRARY.define(
    "linear(Tensor x, Tensor codes, Tensor scales, Tensor? scale_levels, Tensor? outer, Tensor? zeros, Tensor levels, "
    "float unit, float gain, int block, int rows, int columns, int activation_bits) -> Tensor"
)
TYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATION_BITS = (8, 16)
ACTIVATION_EXTENT = 127.5  # of the data type int8, whose levels are -128..127


def linear(x: Tensor, weight: PackedWeight, activation_bits: int = 16) -> Tensor:
    """x (..., in) times the transpose of a packed weight (out, in): (..., out), in the type of x.

    activation_bits: 16 takes x as it is; 8 rounds each of its rows to int8 (the format int8-row-fp32) and multiplies
    integers. ValueError for another type of x, another length or device, or levels that are no integers with 8 bits.
    """
    check(x, weight, activation_bits)
    w = weight
    arguments = (
        x, w.codes, w.scales, w.scale_levels, w.outer, w.zeros, w.levels, w.unit, w.gain, w.block, w.rows, w.columns,
        activation_bits,
    )  # fmt: skip
    if forward_ad._current_level >= 0 and (dual := forward_ad.unpack_dual(x)).tangent is not None:
        return forward_ad.make_dual(linear(dual.primal, w, activation_bits), linear(dual.tangent, w))
    if torch.compiler.is_compiling() or x.requires_grad:
        return torch.ops.kbit.linear(*arguments)
    with torch._C._AutoDispatchBelowAutograd():  # saves its seven microseconds where there is no gradient
        return torch.ops.kbit.linear.default(*arguments)


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
    w = weight
    tensors = w.codes, w.scales, w.scale_levels, w.outer, w.zeros, w.levels
    return torch.ops.kbit.decode(*tensors, w.unit, w.block, w.rows, w.columns).to(dtype)


def _decoded(
    codes: Tensor,
    scales: Tensor,
    scale_levels: Tensor | None,
    outer: Tensor | None,
    zeros: Tensor | None,
    levels: Tensor,
    unit: float,
    block: int,
    rows: int,
    columns: int,
) -> Tensor:
    """The operator that `decode` calls."""

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
    weight = levels[unpack_codes(codes, rows, columns).int()]
    if zeros is not None and zeros.dtype == torch.int16:
        bits = zeros[..., None] >> torch.arange(ROWS, dtype=torch.int16, device=codes.device) & 1
        places = torch.arange(zeros.shape[-1], device=codes.device)[:, None]
        weight = weight - spread((bits.int() << places).sum(-2).float())
    weight = weight * spread(scale)
    if zeros is not None and zeros.dtype != torch.int16:
        weight = weight + spread(zeros.float())
    return weight * unit


def rounded_to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., in) by rows in the format int8-row-fp32: whole numbers -128..127, float32, and scales (..., 1)."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / ACTIVATION_EXTENT
    inverse = torch.where(scale == 0, 0, 1 / scale)
    return (x * inverse).round().clamp(-128, 127), scale


def reference(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    scale_levels: Tensor | None,
    outer: Tensor | None,
    zeros: Tensor | None,
    levels: Tensor,
    unit: float,
    gain: float,
    block: int,
    rows: int,
    columns: int,
    activation_bits: int,
) -> Tensor:
    """The operator in plain PyTorch: the weight is decoded to float32, then multiplied."""
    weight = _decoded(codes, scales, scale_levels, outer, zeros, levels, unit, block, rows, columns)
    if activation_bits == 8:
        whole, scale = rounded_to_int8(x)
        return (F.linear(whole, weight) * scale).to(x.dtype)
    return F.linear(x.float(), weight).to(x.dtype)


def _on_cpu(x: Tensor, *rest: Any) -> Tensor:
    columns = rest[10]
    if x.dtype not in TYPES or x.shape[-1:] != (columns,):
        raise ValueError(f"the product takes {columns} columns of floats, not {x.dtype} {tuple(x.shape)}")
    return cpu.linear(x, *rest) if cpu.available() else reference(x, *rest)


def _decoded_on_cpu(*weight: Any) -> Tensor:
    return cpu.decode(*weight) if cpu.available() else _decoded(*weight)


def _on_cuda(x: Tensor, *rest: Any) -> Tensor:
    kernels = triton_kernels()
    product = kernels.linear if kernels else reference
    return product(x, *rest)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors, ctx.unit, _, ctx.block, ctx.rows, ctx.columns, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Only x has a gradient: codes are no numbers to be moved a little."""
    weight = torch.ops.kbit.decode(*ctx.saved_tensors, ctx.unit, ctx.block, ctx.rows, ctx.columns)
    return (gradient.float() @ weight).to(gradient.dtype), *(None,) * 12


LIBRARY.impl("decode", _decoded, "CompositeExplicitAutograd")
LIBRARY.impl("decode", _decoded_on_cpu, "CPU")
LIBRARY.impl("linear", reference, "CompositeExplicitAutograd")
LIBRARY.impl("linear", _on_cpu, "CPU")
LIBRARY.impl("linear", _on_cuda, "CUDA")
torch.library.register_fake(
    "kbit::decode", lambda codes, *rest: rest[0].new_empty(rest[-2:], dtype=torch.float32), lib=LIBRARY
)
torch.library.register_fake("kbit::linear", lambda x, *rest: x.new_empty((*x.shape[:-1], rest[9])), lib=LIBRARY)
torch.library.register_autograd("kbit::linear", _backward, setup_context=_keep, lib=LIBRARY)

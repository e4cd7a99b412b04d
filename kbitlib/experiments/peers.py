"""Matrix products of others, to be timed beside ours: PyTorch's own kernels, bitsandbytes, torchao.

Who is absent says why; nothing here is needed to compute anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kbitlib.experiments.clock import Row

GROUP = 64  # weights that share a scale, as in our formats of block 64
Product = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Contestant:
    """One way to multiply by a weight (rows, columns).

    row: what it is called in a record. weights: copies of one weight, so many that together they exceed the cache.
    product: y = product(x, weights[i]). stored: bytes of one copy. between: what a product writes and reads again.
    """

    row: Row
    weights: Sequence[Any]
    product: Product
    stored: int
    between: int = 0


def copies(first: Any, stored: int, rotated: int, clone: Callable[[Any], Any]) -> list[Any]:
    """A weight and as many clones as make up `rotated` bytes, 2 to 128 in all."""
    count = min(128, max(2, -(-rotated // max(stored, 1))))
    return [first, *(clone(first) for _ in range(count - 1))]


def others(weight: Tensor, rotated: int) -> tuple[list[Contestant], dict[str, str]]:
    """Every peer that takes this weight (rows, columns) on its device; and of the others why they do not."""
    present, absent = [], {}
    makers = CUDA if weight.is_cuda else CPU
    if weight.shape[0] % GROUP or weight.shape[1] % GROUP:  # some crash on others
        return [], dict.fromkeys(makers, f"measured with rows and columns that are multiples of {GROUP} alone")
    for name, make in makers.items():
        try:
            contestant = make(weight, rotated)
            contestant.product(weight.new_ones(1, weight.shape[1], dtype=torch.bfloat16), contestant.weights[0])
            present.append(contestant)
        except Exception as error:  # not installed, built for another machine or torch, or not for this shape
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return present, absent


def _int4pack_cpu(weight: Tensor, rotated: int) -> Contestant:
    (rows, columns), ops = weight.shape, torch.ops.aten
    packed = ops._convert_weight_to_int4pack_for_cpu(torch.randint(16, (rows, columns), dtype=torch.int32), 1)
    scales = torch.rand(columns // GROUP, rows, 2).bfloat16()  # and zero points
    stored = packed.nbytes + scales.nbytes
    weights = copies((packed, scales), stored, rotated, _clone_tensors)
    row: Row = {"implementation": "torch int4pack", "format": f"int4-b{GROUP}-zpf-bf16", "k": 4}
    return Contestant(row, weights, lambda x, w: ops._weight_int4pack_mm_for_cpu(x, w[0], GROUP, w[1]), stored)


def _int8pack(weight: Tensor, rotated: int) -> Contestant:
    codes = torch.randint(-128, 128, weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.rand(weight.shape[0], device=weight.device).bfloat16()
    stored = codes.nbytes + scales.nbytes
    weights = copies((codes, scales), stored, rotated, _clone_tensors)
    row: Row = {"implementation": "torch int8pack", "format": "int8-row-bf16", "k": 8}
    return Contestant(row, weights, lambda x, w: torch._weight_int8pack_mm(x, *w), stored)


def _bitsandbytes(weight: Tensor, rotated: int) -> Contestant:
    from bitsandbytes.nn import Linear4bit, Params4bit

    rows, columns = weight.shape
    layer = Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    stored = {"quant_type": "nf4", "blocksize": GROUP, "compress_statistics": False}
    layer.weight = Params4bit(weight.bfloat16().cpu(), requires_grad=False, **stored)
    layer = layer.to(weight.device).eval()
    stored = layer.weight.nbytes + layer.weight.quant_state.absmax.nbytes
    layers = copies(layer, stored, rotated, copy.deepcopy)
    for one in layers:  # the first call on a CPU changes the layout, which is no part of a product
        one(weight.new_ones(1, columns, dtype=torch.bfloat16))
    row: Row = {"implementation": "bitsandbytes", "format": f"nf4-b{GROUP}-fp32", "k": 4}
    return Contestant(row, layers, lambda x, one: one(x), stored)


def _torchao(weight: Tensor, rotated: int, k: int) -> Contestant:
    """torchao's weight-only int4 (group 64) or int8 (a scale a row), as `quantize_` makes them by default."""
    from torchao import quantization as peer

    if k == 4:
        packing = "tile_packed_to_4d" if weight.is_cuda else "opaque"
        config = peer.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=packing)
    else:
        config = peer.Int8WeightOnlyConfig(version=2)
    rows, columns = weight.shape
    layer = torch.nn.Linear(columns, rows, bias=False, device=weight.device, dtype=torch.bfloat16)
    peer.quantize_(layer, config)
    stored = rows * columns * k // 8 + (rows * columns // GROUP * 4 if k == 4 else 2 * rows)
    form = f"int4-b{GROUP}-zpf-bf16" if k == 4 else "int8-row-bf16"
    row: Row = {"implementation": "torchao", "format": form, "k": k}
    return Contestant(row, copies(layer, stored, rotated, copy.deepcopy), lambda x, one: one(x), stored)


def _clone_tensors(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)


CPU: dict[str, Callable[[Tensor, int], Contestant]] = {
    "bitsandbytes": _bitsandbytes,
    "torch int4pack": _int4pack_cpu,
    "torch int8pack": _int8pack,
}
CUDA: dict[str, Callable[[Tensor, int], Contestant]] = {
    "bitsandbytes": _bitsandbytes,
    "torchao int4": partial(_torchao, k=4),
    "torchao int8": partial(_torchao, k=8),
}

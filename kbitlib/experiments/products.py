"""How long y = x W^T takes from packed weights: every width, beside unquantized products and those of others.

All take turns in one process. Each has copies of its weight, more than the last cache holds, and takes them one after
another, so that a weight is read from memory, as it is when a model computes one token after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kbitlib.experiments.clock import Action, Row, cache_bytes, in_quiet_turns, processor, quiet_median, waited_share
from kbitlib.experiments.peers import Contestant, copies, others
from kbitlib.kernels import PackedWeight, linear, pack
from kbitlib.kernels.matmul import implementation
from kbitlib.quant import QuantizedTensor, quantize

SAMPLE = 4.0  # milliseconds that one sample lasts at least: below, waking the threads counts
EIGHT_BIT_ACTIVATIONS = ("int4-b64", "int8-b64")
DEQUANTIZED_FIRST = ("nf2-b64", "nf4-b64", "nf8-b64")
CALLS = 1000  # of a product too small to be timed alone
OWN = "kbitlib"
UNQUANTIZED = "torch"
SHORT = {torch.bfloat16: "bf16", torch.float32: "fp32"}
DEQUANTIZED = "dequantize first"


def product_formats(bit_widths: Sequence[int]) -> list[str]:
    """What is timed by default: normal float and integer grids at every width at block 64, and the other kinds of
    scale."""
    grids = [f"{kind}{k}-b64" for kind in ("nf", "int") for k in bit_widths if k > 1]
    return ["binary-b64", *grids, "nf4-b64-dq", "int4-b64-zp", "mxfp4", "nvfp4"]


def measure_products(
    formats: Sequence[str],
    *,
    rows: int,
    columns: int,
    batches: Sequence[int],
    rounds: int,
    device: str = "cpu",
    peers: bool = True,
) -> list[Row]:
    """Milliseconds of a product of x (batch, columns), bfloat16, by a weight (rows, columns) in each format.

    Rows of task "matmul", one an implementation, format, activation bits and batch: `ms`; `waited`, the share of that
    time for which threads waited for a processor; `bytes`, what the product must move; `bytes_rotated`, all copies of
    its weight together, which should exceed `cache`; with `cached` True the same product of one weight over and over,
    which the cache holds. For ours `error_float32` and `error_bfloat16`, the relative Frobenius error against a float64
    product of the dequantized weight with x of that type, and `error_unrounded`, the second without what rounding y to
    bfloat16 alone costs. Rows of task "memory" tell how fast memory is read or copied, of task "overhead" what calling
    the operator costs, of task "absent" why a peer is not there.

    Raises ValueError for a format that has no product from packed weights.
    """
    found = _matmul(formats, rows, columns, batches, rounds, device, peers)
    if formats:
        found.append(_overhead(formats[0], rounds, device))
    about = {"rows": rows, "columns": columns, "rounds": rounds, "device": device, "processor": processor(device)}
    about |= {"threads": torch.get_num_threads(), "cache": cache_bytes(device), "torch": torch.__version__}
    return [{**row, **about} for row in found]


@torch.inference_mode()
def _matmul(
    formats: Sequence[str], rows: int, columns: int, batches: Sequence[int], rounds: int, device: str, peers: bool
) -> list[Row]:
    given = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(device)
    x = torch.randn(max(batches), columns, generator=torch.Generator().manual_seed(1)).to(device)
    rotated = max(100_000_000, (4 if device == "cuda" else 3) * cache_bytes(device))
    contestants = _unquantized(given, rotated, [torch.bfloat16, torch.float32] if peers else [torch.bfloat16])
    accuracy: dict[tuple[str, int, int], Row] = {}
    for name in formats:
        ours, errors = _ours(quantize(given, name), x, batches, rotated)
        contestants += ours
        accuracy |= errors
    present, absent = others(given, rotated) if peers else ([], {})
    tasks = [*_tasks([*contestants, *present], x.bfloat16(), batches), *_memory(device, rotated)]
    samples = in_quiet_turns([action for _, _, action in tasks], rounds, device)
    found = [
        {**row, "ms": quiet_median(taken) / calls, "waited": waited_share(taken), **accuracy.get(_identity(row), {})}
        for (row, calls, _), taken in zip(tasks, samples, strict=True)
    ]
    return found + [{"task": "absent", "implementation": name, "reason": reason} for name, reason in absent.items()]


def _unquantized(weight: Tensor, rotated: int, dtypes: Sequence[torch.dtype]) -> list[Contestant]:
    found = []
    for dtype in dtypes:
        plain = weight.to(dtype, copy=True)
        row: Row = {"implementation": UNQUANTIZED, "format": SHORT[dtype], "k": 8 * dtype.itemsize}
        weights = copies(plain, plain.nbytes, rotated, torch.clone)
        found.append(Contestant(row, weights, lambda x, w: F.linear(x.to(w.dtype), w), plain.nbytes))
    return found


def _ours(
    quantized: QuantizedTensor, x: Tensor, batches: Sequence[int], rotated: int
) -> tuple[list[Contestant], dict[tuple[str, int, int], Row]]:
    """Our contestants of one format, and their errors by (format, activation bits, batch)."""
    name = str(quantized.format)
    first = pack(quantized)
    weights = copies(first, first.nbytes, rotated, _clone)
    row: Row = {
        "implementation": OWN,
        "format": name,
        "k": quantized.format.k,
        "bits_per_weight": quantized.bits_per_weight,
    }
    found, errors = [], {}
    exact = quantized.dequantize(torch.float64)
    for activation_bits in (16, 8) if name in EIGHT_BIT_ACTIVATIONS else (16,):
        named = {**row, "activation_bits": activation_bits}
        found.append(Contestant(named, weights, _operator(activation_bits), first.nbytes))
        for batch in batches:
            errors[name, activation_bits, batch] = _errors(exact, first, x[:batch], activation_bits)
    if name in DEQUANTIZED_FIRST:
        stored, between = copies(quantized, quantized.nbytes, rotated, _clone_stored), 2 * 2 * exact.numel()
        named = {**row, "implementation": DEQUANTIZED}
        found.append(Contestant(named, stored, _dequantize_first, quantized.nbytes, between))
    return found, errors


def _operator(activation_bits: int) -> Callable[[Tensor, PackedWeight], Tensor]:
    return lambda x, weight: linear(x, weight, activation_bits)


def _dequantize_first(x: Tensor, weight: QuantizedTensor) -> Tensor:
    return F.linear(x, weight.dequantize(x.dtype))


def _clone(weight: PackedWeight) -> PackedWeight:
    stored: dict[str, Any] = {name: tensor.clone() for name, tensor in weight.tensors.items()}
    return replace(weight, **stored)


def _clone_stored(weight: QuantizedTensor) -> QuantizedTensor:
    stored: dict[str, Any] = {name: array.clone() for name, array in weight.arrays.items()}
    return replace(weight, **stored)


def _errors(exact: Tensor, weight: PackedWeight, x: Tensor, activation_bits: int) -> Row:
    """Relative Frobenius errors of y; x rounded as the operator rounds it, where activations have 8 bits."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        taken = given if activation_bits == 16 else quantize(given, "int8-row-fp32").dequantize(torch.float64)
        wanted = F.linear(taken.double(), exact)
        found[f"error_{str(dtype).removeprefix('torch.')}"] = _relative(linear(given, weight, activation_bits), wanted)
    rounding = _relative(wanted.bfloat16(), wanted)
    return {**found, "error_unrounded": max(found["error_bfloat16"] ** 2 - rounding**2, 0.0) ** 0.5}


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def _identity(row: Row) -> tuple[str, int, int]:
    """What the errors of a row are kept by: none for others and for rows of other tasks."""
    own = row["implementation"] == OWN and not row["cached"]
    return (row["format"], row["activation_bits"], row["batch"]) if own else ("", 0, 0)


def _tasks(contestants: Sequence[Contestant], x: Tensor, batches: Sequence[int]) -> Iterator[tuple[Row, int, Action]]:
    """What is timed: the row that names it, how many products one sample holds, and the sample."""
    held = 0.75 * cache_bytes(x.device.type)
    for batch in batches:
        for one in contestants:
            yield _task(one, x[:batch], one.weights, cached=False)
    for one in contestants:
        if one.row["implementation"] == OWN and one.stored < held:
            yield _task(one, x[:1], one.weights[:1], cached=True)


def _task(one: Contestant, x: Tensor, weights: Sequence[Any], *, cached: bool) -> tuple[Row, int, Action]:
    y = one.product(x, weights[0])
    moved = one.stored + one.between + x.nbytes + y.nbytes
    calls = len(weights) if x.is_cuda else _calls(one, x, weights)
    row = {"task": "matmul", "activation_bits": 16, **one.row, "batch": x.shape[0], "cached": cached}
    row |= {"bytes": moved, "bytes_rotated": len(weights) * one.stored}
    return row, calls, _sample(one, x, weights, calls)


def _calls(one: Contestant, x: Tensor, weights: Sequence[Any]) -> int:
    """How many products make a sample long enough."""
    began = time.perf_counter()
    one.product(x, weights[-1])
    taken = 1e3 * (time.perf_counter() - began)
    return max(1, min(128, round(SAMPLE / taken)))


def _sample(one: Contestant, x: Tensor, weights: Sequence[Any], calls: int) -> Action:
    turn = cycle(weights)

    def sample() -> None:
        for weight in islice(turn, calls):
            one.product(x, weight)

    return _recorded(sample) if x.is_cuda else sample


def _recorded(sample: Action) -> Action:
    """The launches of a sample recorded once as a CUDA graph, so that the device's time is seen and not Python's; as it
    is where it cannot be recorded."""
    sample()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            sample()
    except RuntimeError:
        return sample
    return graph.replay


def _memory(device: str, rotated: int) -> list[tuple[Row, int, Action]]:
    """What moving bytes costs on this machine: a read by all threads on a CPU, a copy on a GPU."""
    buffer = torch.ones(rotated // 4, dtype=torch.float32, device=device)
    row: Row = {"task": "memory", "implementation": "memory"}
    if device == "cuda":
        target = torch.empty_like(buffer)
        return [({**row, "format": "copy", "bytes": 2 * buffer.nbytes}, 1, lambda: target.copy_(buffer))]
    return [({**row, "format": "read", "bytes": buffer.nbytes}, 1, buffer.sum)]


def _overhead(name: str, rounds: int, device: str) -> Row:
    """What the operator adds to an eager call: a product too small to take time, with it and by the bare function."""
    weight = pack(quantize(torch.randn(16, 32), name)).to(device)
    x = torch.randn(1, 32, device=device).bfloat16()
    bare, stored = implementation(device), weight.stored
    calls: dict[str, Action] = {"ms": lambda: linear(x, weight), "bare_ms": lambda: bare(x, stored, 16)}
    samples = in_quiet_turns([partial(_repeat, call) for call in calls.values()], rounds)
    took = {key: quiet_median(taken) / CALLS for key, taken in zip(calls, samples, strict=True)}
    return {"task": "overhead", "implementation": OWN, "format": name, **took}


def _repeat(call: Action) -> None:
    for _ in range(CALLS):
        call()

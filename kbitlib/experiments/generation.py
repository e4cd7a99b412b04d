"""How fast a model writes, and in how much memory, when its weights are read in k bits.

`python -m kbitlib.experiments.generation --width 2048 --depth 20 --heads 16` prints records as JSON; it needs torch,
numpy and the standard library alone, so that it runs wherever there is a machine to measure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from kbitlib.experiments.clock import Row, Sample, in_process_of, on_host, quiet_median
from kbitlib.models.layers import block_linears, weight_of
from kbitlib.models.quantized import QuantizedLinear
from kbitlib.models.transformer import VOCABULARY, Shape, Transformer, rotations, stream
from kbitlib.quant import Format, QuantizedTensor, quantize

# glibc gives blocks of this size back once they are free, so that the most memory held is what was needed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
PIECE = 2**18  # weights drawn and rounded at once: beside a model of any size they are little
FIRST = 4  # tokens that are not timed: caches fill, and memory is touched for the first time


def measure_generation(
    *, width: int, depth: int, heads: int, bits: Sequence[int], tokens: int, seed: int = 0
) -> list[Row]:
    """Tokens a second, and memory, of a randomly initialised decoder (`Transformer`), a process for each k.

    bits: 16 is bfloat16 in PyTorch's own linear layers, 2 to 8 normal floats in blocks of 64, 1 binary; what is not in
    the blocks stays in bfloat16. One row a k: tokens_per_s, ms_per_token, each token drawn by itself with a cache of
    keys and values (`quiet_median` of all but the first tokens); bytes_held, of weights; peak_bytes, the most resident
    memory since before the model was built, over that; predicted_bytes, bits a weight times weights; cache_bytes.
    ValueError for sizes that make no model; RuntimeError, with what it wrote, for a process that fails.
    """
    Shape(width=width, depth=depth, heads=heads, context=tokens + 1)
    for k in bits:
        format_of(k)
    sizes = {"width": width, "depth": depth, "heads": heads, "tokens": tokens, "seed": seed}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    own = partial(in_process_of, "kbitlib.experiments.generation", *options, environment=ALLOCATOR)
    return [row for k in bits for row in own("--bits", str(k))]


def measure_here(shape: Shape, k: int, seed: int) -> Row:
    """The row of one k, measured in this process on a text as long as the context."""
    write(build(Shape(width=64, depth=1, context=8), k, seed))  # what is loaded and compiled once is not the model's
    before = resident_bytes("VmRSS")
    forget_peak()
    model = build(shape, k, seed)
    taken = write(model)
    peak = resident_bytes("VmHWM")
    milliseconds = quiet_median(taken[min(FIRST, len(taken) // 2) :])
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return {
        **{"task": "generate", "implementation": "kbitlib", "k": k, "format": format_of(k)},
        **{"tokens_per_s": 1e3 / milliseconds, "ms_per_token": milliseconds, "bytes_held": held},
        "peak_bytes": None if peak is None or before is None else peak - before,
        "predicted_bytes": predicted_bytes(shape, k),
        "cache_bytes": 2 * shape.depth * shape.width * shape.context * torch.bfloat16.itemsize,
        **{"params": shape.params, "width": shape.width, "depth": shape.depth, "heads": shape.heads},
        **{"tokens": len(taken), "seed": seed, "threads": torch.get_num_threads()},
    }


def format_of(k: int) -> str:
    """What weights are kept in at k bits; ValueError for a k that there is nothing for."""
    if k == 16:
        return "bf16"
    if not 1 <= k <= 8:
        raise ValueError(f"weights have 16 bits or 1 to 8, not {k}")
    return f"nf{k}-b64" if k > 1 else "binary-b64"


def predicted_bytes(shape: Shape, k: int) -> float:
    """Bytes of a model's weights as bits a weight have it: the format's in the blocks, 16 elsewhere."""
    bits = 16.0 * (shape.params - shape.params_nonemb)
    for size in linear_sizes(shape).values():
        bits += prod(size) * (16.0 if k == 16 else Format.parse(format_of(k)).bits_per_weight(size))
    return bits / 8


def linear_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """The weights (out, in) of the blocks' linear layers, by name: both of their sides are multiples of the width."""
    narrow = narrow_model(shape)
    sides = {name: weight_of(layer).shape for name, layer in block_linears(narrow)}
    wide, width = shape.width, narrow.shape.width
    return {name: (rows * wide // width, columns * wide // width) for name, (rows, columns) in sides.items()}


def narrow_model(shape: Shape) -> Transformer:
    """A model as deep, with as many heads, and as narrow as can be: one to be widened without ever being whole."""
    return Transformer(replace(shape, width=2 * shape.heads * -(-4 // shape.heads)))


@torch.no_grad()
def build(shape: Shape, k: int, seed: int) -> Transformer:
    """A decoder with weights N(0, 1/fan_in), drawn in bfloat16, the same for every k; layer by layer, so that what is
    not packed yet is never more than a small part of it."""
    model, generator = narrow_model(shape), torch.Generator().manual_seed(seed)
    for name, (rows, columns) in linear_sizes(shape).items():
        pieces = _drawn(rows, columns, generator)
        if k == 16:
            model.get_submodule(name).weight = nn.Parameter(_joined(pieces, rows, columns))
        else:
            model.set_submodule(name, QuantizedLinear(_quantized(pieces, rows, columns, format_of(k))))
    for other in (model.embedding, model.unembedding):
        sides = VOCABULARY, shape.width
        other.weight = nn.Parameter(_joined(_drawn(*sides, generator), *sides))
    model.shape, (model.cos, model.sin) = shape, (part.bfloat16() for part in rotations(shape))
    return model.eval()


def _drawn(rows: int, columns: int, generator: torch.Generator) -> Iterator[Tensor]:
    """A weight, some rows at a time: multiples of 8, whose codes are whole bytes."""
    step = 8 * max(1, PIECE // (8 * columns))
    for first in range(0, rows, step):
        piece = torch.empty(min(step, rows - first), columns)
        yield piece.normal_(std=columns**-0.5, generator=generator).bfloat16()


def _joined(pieces: Iterator[Tensor], rows: int, columns: int) -> Tensor:
    """The weight in bfloat16."""
    whole, first = torch.empty(rows, columns, dtype=torch.bfloat16), 0
    for piece in pieces:
        whole[first : first + len(piece)] = piece
        first += len(piece)
    return whole


def _quantized(pieces: Iterator[Tensor], rows: int, columns: int, format: str) -> QuantizedTensor:
    """The weight in k bits; rows are quantized by themselves, so pieces of them are too."""
    parts = [quantize(piece, format) for piece in pieces]
    arrays = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return QuantizedTensor(parts[0].format, torch.Size((rows, columns)), torch.bfloat16, **arrays)


def write(model: Transformer) -> list[Sample]:
    """Samples, as `clock` has them, of what each byte of a text as long as the context took, drawn one by one."""
    context = model.shape.context
    text = stream(model, b"\n", context - 1, context, seed=0, temperature=1.0, cache_format=None)
    return [on_host(partial(next, text)) for _ in range(context - 1)]


def resident_bytes(field: str) -> int | None:
    """This process's resident memory, now ("VmRSS") or at most ("VmHWM"); None where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return None


def forget_peak() -> None:
    """Let "VmHWM" begin anew; where that is not allowed it stays the most since the process began."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kbitlib.experiments.generation", description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4, 3, 2])
    parser.add_argument("--tokens", type=int, default=48, help="bytes to write")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    if len(given["bits"]) > 1:
        rows = measure_generation(**given)
    else:
        (k,), tokens, seed = given.pop("bits"), given.pop("tokens"), given.pop("seed")
        rows = [measure_here(Shape(**given, context=tokens + 1), k, seed)]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""How long quantizing takes, ours and others' in one process, in turns; and the door to all measurements of speed.

`python -m kbitlib.experiments.speed {quantize,matmul,generate}` prints records as JSON; it needs torch, numpy and the
standard library alone, so that it runs wherever there is a machine to measure. Others are measured where they are
installed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kbitlib.experiments.clock import Action, Row, in_process_of, in_turns, processor, quiet_median
from kbitlib.experiments.products import measure_products, product_formats
from kbitlib.quant import quantize

# glibc gives blocks over 32 MiB back at once, and every fresh one costs page faults: far more than quantizing does.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
FIXED = ("int", "nf", "fp", "pot", "dynamic")  # data types whose codebook does not depend on the weights


def measure_quantization(formats: Sequence[str], *, size: int, rounds: int) -> list[Row]:
    """Milliseconds to quantize and pack a float32 matrix (size, size), and to restore it.

    One row an implementation and format: ours, those of peers that are installed, and what moving memory costs ("copy",
    "read"). All take turns, round by round, after one round that is not counted; `quiet_median` of the rounds is given.
    """
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    tasks: list[tuple[Row, Action]] = [
        ({"implementation": "memory", "format": "copy", "task": "copy"}, weight.clone),
        ({"implementation": "memory", "format": "read", "task": "read"}, weight.sum),
    ]
    for name in formats:
        ours: Row = {"implementation": "kbitlib", "format": name}
        tasks.append(({**ours, "task": "quantize"}, partial(quantize, weight, name)))
        tasks.append(({**ours, "task": "dequantize"}, quantize(weight, name).dequantize))
    tasks += [*_bitsandbytes(weight), *_torchao(weight)]
    samples = in_turns([action for _, action in tasks], rounds)
    machine = {"size": size, "rounds": rounds, "threads": torch.get_num_threads(), "processor": processor()}
    return [{**row, "ms": quiet_median(taken), **machine} for (row, _), taken in zip(tasks, samples, strict=True)]


def _bitsandbytes(weight: Tensor) -> list[tuple[Row, Action]]:
    try:
        from bitsandbytes import functional as peer
    except Exception:  # absent, or built for another machine
        return []
    row: Row = {"implementation": "bitsandbytes", "format": "nf4-b64-fp32"}
    there = partial(peer.quantize_4bit, weight, blocksize=64, quant_type="nf4")
    back = partial(peer.dequantize_4bit, *there())
    return [({**row, "task": "quantize"}, there), ({**row, "task": "dequantize"}, back)]


def _torchao(weight: Tensor) -> list[tuple[Row, Action]]:
    try:
        from torchao.quantization import quant_primitives as peer
    except Exception:  # absent, or built for another torch
        return []
    block, int4 = (1, 64), {"quant_min": -8, "quant_max": 7}

    def there() -> tuple[Tensor, Tensor, Tensor]:
        kind = peer.MappingType.SYMMETRIC
        scale, zero = peer.choose_qparams_affine(weight, kind, block, torch.int8, **int4)
        return peer.quantize_affine(weight, block, scale, zero, torch.int8, **int4), scale, zero

    codes, scale, zero = there()
    back = partial(peer.dequantize_affine, codes, block, scale, zero, torch.int8, **int4)
    row: Row = {"implementation": "torchao", "format": "int4-b64-fp32"}
    return [({**row, "task": "quantize"}, there), ({**row, "task": "dequantize"}, back)]


def fixed_formats(bit_widths: Sequence[int]) -> list[str]:
    """Every data type of a fixed codebook at every width, at block 64 with 16-bit scales, and what else speaks of
    speed."""
    names = [f"{kind}{k}-b64" for k in bit_widths if k > 1 for kind in FIXED]
    return ["nf4-b64-fp32", *names, "int4-b64-zp", "mxfp4", "binary", "ternary"]


def in_own_process(*arguments: str) -> list[Row]:
    """The records of ``python -m kbitlib.experiments.speed ARGUMENTS``, whose allocator is told to keep its memory."""
    return in_process_of("kbitlib.experiments.speed", *arguments, environment=ALLOCATOR)


def generate(**given: Any) -> list[Row]:
    """As `generation.measure_generation`; models are loaded for nothing else here."""
    from kbitlib.experiments.generation import measure_generation

    return measure_generation(**given)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kbitlib.experiments.speed", description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True)
    one = tasks.add_parser("quantize", help="quantize a matrix and restore it")
    one.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    one.add_argument("--rounds", type=int, default=9)
    one.add_argument("--formats", nargs="*", default=fixed_formats(range(2, 9)), help="every fixed codebook by default")
    one = tasks.add_parser("matmul", help="products with packed weights")
    one.add_argument("--rows", type=int, default=4096, help="of the weight: outputs")
    one.add_argument("--columns", type=int, default=4096, help="of the weight: inputs")
    one.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    one.add_argument("--rounds", type=int, default=9)
    one.add_argument("--formats", nargs="*", default=product_formats(range(2, 9)))
    one.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    one.add_argument("--no-peers", dest="peers", action="store_false", help="ours and unquantized ones alone")
    one = tasks.add_parser("generate", help="tokens a second of a decoder of random weights")
    one.add_argument("--width", type=int, default=2048)
    one.add_argument("--depth", type=int, default=20)
    one.add_argument("--heads", type=int, default=16)
    one.add_argument("--bits", nargs="+", type=int, default=[16, 8, 4, 3, 2])
    one.add_argument("--tokens", type=int, default=32)
    one.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    warnings.simplefilter("ignore")
    measure: dict[str, Callable[..., list[Row]]]
    measure = {"quantize": measure_quantization, "matmul": measure_products, "generate": generate}
    print(json.dumps(measure[given.pop("task")](**given), indent=1))


if __name__ == "__main__":
    main()

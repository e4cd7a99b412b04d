"""How long quantizing takes, ours and others' in one process, in turns.

`python -m kbitlib.experiments.speed quantize` prints records as JSON; it needs torch, numpy and the standard library
alone, so that it runs wherever there is a machine to measure. Others are measured where they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kbitlib.quant import quantize

# glibc gives blocks over 32 MiB back at once, and every fresh one costs page faults: far more than quantizing does.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
FIXED = ("int", "nf", "fp", "pot", "dynamic")  # data types whose codebook does not depend on the weights
Action = Callable[[], object]
Row = dict[str, Any]


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


def in_turns(actions: Sequence[Action], rounds: int) -> list[list[tuple[float, float]]]:
    """Each action's samples (milliseconds, milliseconds that its threads waited for a processor), round by round."""
    samples: list[list[tuple[float, float]]] = [[] for _ in actions]
    for turn in range(rounds + 1):
        for action, taken in zip(actions, samples, strict=True):
            waited, began = waiting(), time.perf_counter()
            action()
            ended = time.perf_counter()
            if turn:
                taken.append((1e3 * (ended - began), waiting() - waited))
    return samples


def quiet_median(samples: Sequence[tuple[float, float]]) -> float:
    """The median time of the half of the samples whose threads waited least: what else the machine does is left out."""
    quiet = sorted(samples, key=lambda sample: sample[1])[: (len(samples) + 1) // 2]
    return statistics.median(taken for taken, _ in quiet)


def waiting() -> float:
    """Milliseconds that this process's threads have stood in the run queue so far; 0 where the system does not say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError):  # a thread that has just ended, or a system that keeps no count
            continue
    return total / 1e6


def processor() -> str:
    """The processor's name, as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


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
    command = [sys.executable, "-m", "kbitlib.experiments.speed", *arguments]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    rows: list[Row] = json.loads(done.stdout)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kbitlib.experiments.speed", description=__doc__)
    parser.add_argument("task", choices=["quantize"])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--formats", nargs="*", help="format strings; every fixed codebook by default")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    formats = given.formats or fixed_formats(range(2, 9))
    print(json.dumps(measure_quantization(formats, size=given.size, rounds=given.rounds), indent=1))


if __name__ == "__main__":
    main()

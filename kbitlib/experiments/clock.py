"""How a comparison of speed is timed: everything takes turns in one process, and the least disturbed samples count."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Action = Callable[[], object]
Row = dict[str, Any]
Sample = tuple[float, float]
BUSY = 0.1  # of a time spent waiting for a processor: above, it is not the machine's best
LAST_LEVEL_CACHE = 32 * 2**20  # bytes, where the system does not say


def in_turns(actions: Sequence[Action], rounds: int, device: str = "cpu") -> list[list[Sample]]:
    """Each action's samples (milliseconds, milliseconds that its threads waited for a processor), round by round.

    One round before them is not counted. On a CUDA device the milliseconds are the device's own, between two events.
    """
    samples: list[list[Sample]] = [[] for _ in actions]
    clock = _on_device if device == "cuda" else on_host
    for turn in range(rounds + 1):
        for action, taken in zip(actions, samples, strict=True):
            sample = clock(action)
            if turn:
                taken.append(sample)
    return samples


def in_quiet_turns(actions: Sequence[Action], rounds: int, device: str = "cpu") -> list[list[Sample]]:
    """As `in_turns`; actions whose threads waited for a processor all the same get as many rounds more, up to twice."""
    samples = in_turns(actions, rounds, device)
    for _ in range(2):
        again = [place for place, taken in enumerate(samples) if waited_share(taken) > BUSY]
        for place, more in zip(again, in_turns([actions[place] for place in again], rounds, device), strict=True):
            samples[place] += more
    return samples


def on_host(action: Action) -> Sample:
    """Milliseconds that an action took, and that this process's threads waited for a processor meanwhile."""
    waited, began = waiting(), time.perf_counter()
    action()
    ended = time.perf_counter()
    return 1e3 * (ended - began), waiting() - waited


def _on_device(action: Action) -> Sample:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    action()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended), 0.0


def quiet_median(samples: Sequence[Sample]) -> float:
    """The median time of the half of the samples whose threads waited least: what else the machine does is left out."""
    return statistics.median(taken for taken, _ in _quieter_half(samples))


def waited_share(samples: Sequence[Sample]) -> float:
    """How long the threads waited in that half, as a share of its time: what else the machine did all the same."""
    quiet = _quieter_half(samples)
    return sum(waited for _, waited in quiet) / sum(taken for taken, _ in quiet)


def _quieter_half(samples: Sequence[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: sample[1])[: (len(samples) + 1) // 2]


def in_process_of(module: str, *arguments: str, environment: Mapping[str, str]) -> list[Row]:
    """The records that ``python -m MODULE ARGUMENTS`` prints as JSON; RuntimeError, with what it wrote, if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    rows: list[Row] = json.loads(done.stdout)
    return rows


def waiting() -> float:
    """Milliseconds that this process's threads have stood in the run queue so far; 0 where the system does not say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError):  # a thread that has just ended, or a system that keeps no count
            continue
    return total / 1e6


def processor(device: str = "cpu") -> str:
    """The processor's or the GPU's name, as the system has it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def cache_bytes(device: str = "cpu") -> int:
    """Bytes of the last cache before memory: a weight that is larger, or used after others that are, is read from
    memory."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    kibibytes = [int(size.removesuffix("K")) for size in sizes if size.endswith("K")]
    return 1024 * max(kibibytes, default=LAST_LEVEL_CACHE // 1024)

"""How long it takes to quantize and dequantize a 4096 x 4096 matrix in each format, as multiples of copying it.

Run by `make bench`. Formats take turns, round by round, so that what else the machine does falls on all of them alike;
medians are printed.
"""

import statistics
import time
from collections.abc import Callable

import torch

from kbitlib.quant import quantize

FORMATS = ("int4-b64", "nf4-b64", "nf4-b64-dq", "e2m1-b32-e8m0", "int8-b64", "nf8-b64", "binary-b64", "ternary-b64")
ROUNDS = 5


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    packed = {name: quantize(weight, name) for name in FORMATS}
    copies, there, back = [], {name: [] for name in FORMATS}, {name: [] for name in FORMATS}
    for _ in range(ROUNDS):
        copies.append(seconds(weight.clone))
        for name in FORMATS:
            there[name].append(seconds(lambda name=name: quantize(weight, name)))
            back[name].append(seconds(packed[name].dequantize))
    copy = statistics.median(copies)
    print(f"copy: {1e3 * copy:.1f} ms, {torch.get_num_threads()} threads")
    print(f"{'format':16} {'bits':>7} {'quantize':>10} {'dequantize':>11}   (times a copy)")
    for name in FORMATS:
        ratios = [statistics.median(times[name]) / copy for times in (there, back)]
        print(f"{name:16} {packed[name].bits_per_weight:7.3f} {ratios[0]:10.1f} {ratios[1]:11.1f}")


if __name__ == "__main__":
    main()

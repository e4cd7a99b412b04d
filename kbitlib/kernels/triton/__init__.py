"""The GPU's products in Triton: multiply-adds in float32 for a few rows of input, tensor cores above.

What is notable: a thread reads 16 bytes of neighbouring rows' codes at a time, and asks for the next before it uses
these. Levels are looked up in shared memory (`tl.gather`): a look-up through a global address takes two integer
instructions more, and a multiprocessor issues 128 instructions a clock, 64 of them integer, 32 look-ups. A shift, a
mask, a look-up and a multiply-add for each weight make 32 weights a clock; memory could bring some 33 of 4 bits
(Hopper). Hence:
- codes of up to 3 bits are looked up two at a time, as pairs of 16-bit levels (pairs of 4 bits would collide in banks);
- tables of over 32 levels are float16 for 16-bit inputs, two levels a bank (256 still collide, threefold on average);
- integers have no table: their bits put at the head of a mantissa are 2^k + code, and 2^k times the sum of the inputs
  is taken off once a block.
Scales multiply sums in float32, so that integers lose nothing. With many rows of input that costs more than to multiply
the decoded weight, which is then rounded, once and after its scale, to bfloat16.

Nothing is added atomically: a configuration (`tuning`) gives the same result from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from kbitlib.kernels.layout import PARTS, Stored
from kbitlib.kernels.triton.matrix import CENTRED, round_rows
from kbitlib.kernels.triton.tuning import tuned_matrix, tuned_vector

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Rows of input up to which no tensor core is used: beyond four, multiply-adds take longer than decoding; tensor cores
# do not multiply float32, kept exact, any faster.
FEW = {torch.float32: 8, torch.float16: 4, torch.bfloat16: 4}
_kinds: WeakIdKeyDictionary = WeakIdKeyDictionary()  # levels to their version and what `_integers_among` says


def _integers_among(levels: Tensor) -> int:
    """0 for any levels, 1 for consecutive integers that bfloat16 holds, CENTRED if those are -2^(k-1) to 2^(k-1) - 1.

    The device is asked once for each version of a tensor: the answer is waited for.
    """
    version, kind = _kinds.get(levels, (-1, 0))
    if version != levels._version:
        values = levels.tolist()
        first = values[0]
        consecutive = first == int(first) and -256 <= first <= 1 and values == [first + i for i in range(len(values))]
        kind = 0 if not consecutive else int(CENTRED) if 2 * first == -len(values) else 1
        _kinds[levels] = levels._version, kind
    return kind


def _storage(scales: Tensor, scale_levels: Tensor | None, outer: Tensor | None) -> str:
    """How scales are stored, in the words of `load_scale`."""
    if outer is not None:
        return "two"
    if scales.numel() == 1:
        return "one" if scale_levels is None else "one byte"
    return "float" if scale_levels is None else "byte"


def _programs_wanted(device: torch.device) -> int:
    """Programs that keep a device's memory busy: four on each multiprocessor."""
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _split(programs: int, batch: int, columns: int, k: int, device: torch.device) -> int:
    """Among how many programs the columns of a row are dealt where rows alone are too few: a power of 2 up to 8.

    Partial sums, written and read, take no more than an eighth of the memory traffic of the codes.
    """
    split, most = 1, min(8, columns // 256, columns * k // (512 * batch))
    while 2 * split <= most and 2 * split * programs <= _programs_wanted(device):
        split *= 2
    return split


def linear(x: Tensor, weight: Stored, activation_bits: int) -> Tensor:
    """kbit::linear on a GPU: x (..., columns) to (..., rows) in the type of x; `Stored` says what a weight holds."""
    codes, scales, scale_levels, outer, zeros, levels, unit, gain, block, rows, columns = weight
    batch = x.numel() // columns if columns else x.shape[:-1].numel()
    if not batch * rows * columns:
        return x.new_zeros(*x.shape[:-1], rows)
    _, tiles, k, _ = codes.shape
    shared = {
        "K": k,
        "WIDE": PARTS[k][0],
        "INTEGERS": _integers_among(levels),
        "SCALE": _storage(scales, scale_levels, outer),
        "ZERO": "" if zeros is None else "int" if zeros.dtype == torch.int16 else "float",
        "BLOCK": block if block < columns else 2**30,
    }
    # What a weight does not have is never read: levels stand for it.
    arrays = codes, scales, *(levels if part is None else part for part in (scale_levels, outer, zeros)), levels
    sizes = rows, columns, tiles, -(-columns // block)
    flat = x.reshape(batch, columns).contiguous()
    with torch.cuda.device_of(x):
        if activation_bits == 16 and batch <= FEW[x.dtype]:
            y = _few(flat, arrays, unit, gain, sizes, shared)
        else:
            y = _many(flat, arrays, unit, gain, sizes, shared, activation_bits)
    return y.view(*x.shape[:-1], rows)


def _few(
    x: Tensor, weight: tuple[Tensor, ...], unit: float, gain: float, sizes: tuple[int, ...], shared: dict[str, Any]
) -> Tensor:
    """At most eight rows of x, read four columns at a time; copied where that does not come out even."""
    (batch, columns), (rows, _, *rest), groups = x.shape, sizes, weight[0].shape[0]
    if columns % 4 or x.data_ptr() % 8:
        x = F.pad(x, (0, -columns % 4)) if columns % 4 else x.clone()
    split = _split(groups, batch, columns, shared["K"], x.device)
    out = x.new_empty(split, batch, rows, dtype=x.dtype if split == 1 else torch.float32)
    tuned_vector[groups, split](
        x.view(torch.int64), *weight, out, unit, gain, (127 + shared["K"]) << 23, rows, x.shape[1], *rest, **shared,
        TYPE=TYPES[x.dtype], BATCH=batch, SPLIT=split,
    )  # fmt: skip
    return out[0] if split == 1 else out.sum(0).to(x.dtype)


def _many(
    x: Tensor,
    weight: tuple[Tensor, ...],
    unit: float,
    gain: float,
    sizes: tuple[int, ...],
    shared: dict[str, Any],
    activation_bits: int,
) -> Tensor:
    """Rows of x by tensor cores, rounded to int8 first for 8-bit activations."""
    (batch, columns), rows, groups = x.shape, sizes[0], weight[0].shape[0]
    inputs, scale, kind = x, x, TYPES[x.dtype]
    if activation_bits == 8:
        inputs, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(batch, dtype=torch.float32)
        kind, shared = tl.int8, shared | {"INTEGERS": shared["INTEGERS"] or 1}
        round_rows[batch,](x, inputs, scale, columns, SPAN=min(4096, triton.next_power_of_2(columns)))
    rows_of_x = min(256, max(16, triton.next_power_of_2(batch)))
    split = _split(-(-groups // 4) * -(-batch // rows_of_x), batch, columns, shared["K"], x.device)
    out = x.new_empty(split, batch, rows, dtype=x.dtype if split == 1 else torch.float32)
    tuned_matrix[lambda config: (-(-batch // config["BATCH"]), -(-groups // config["GROUPS"]), split)](
        inputs, scale, *weight, out, unit, gain, batch, *sizes, **shared, TYPE=kind, CLASS=rows_of_x, SPLIT=split
    )
    return out[0] if split == 1 else out.sum(0).to(x.dtype)

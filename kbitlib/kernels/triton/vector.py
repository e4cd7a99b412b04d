"""Few rows of input: a program multiplies all of them with 16 rows of the weight, in multiply-adds of float32."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated"
# ruff: noqa: SIM300  (a kernel's capitals are arguments)

from __future__ import annotations

import triton
import triton.language as tl

from kbitlib.kernels.triton.decoding import (
    codes_of_step,
    float_of_pair,
    largest_level,
    level_table,
    load_scale,
    load_words,
    look_up,
    offset_integers,
    pair_table,
    short_float,
    split_bytes,
)


@triton.jit
def _load_inputs(x, at, valid, TYPE: tl.constexpr):
    """Columns 4 at to 4 at + 3 of x, float32; x is read 64 bits at a time."""
    if TYPE == tl.float32:
        ab = tl.load(x + at * 2, mask=valid, other=0)
        cd = tl.load(x + at * 2 + 1, mask=valid, other=0)
        a, b = ab.to(tl.int32).to(tl.float32, bitcast=True), (ab >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        c, d = cd.to(tl.int32).to(tl.float32, bitcast=True), (cd >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        four = tl.load(x + at, mask=valid, other=0)
        a, b = short_float(four, 0, TYPE).to(tl.float32), short_float(four, 1, TYPE).to(tl.float32)
        c, d = short_float(four, 2, TYPE).to(tl.float32), short_float(four, 3, TYPE).to(tl.float32)
    return a, b, c, d


@triton.jit
def vector_kernel(
    x, codes, scales, scale_levels, outer, zeros, levels, out, unit, gain, one, rows, columns, tiles, blocks,
    BLOCK: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr, INTEGERS: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, BATCH: tl.constexpr, SPLIT: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """A program multiplies BATCH rows of x with 16 rows of the weight, in every SPLIT-th stretch of columns.

    x: (BATCH, columns), four 16-bit or two 32-bit numbers an int64. out: (SPLIT, BATCH, rows) float32, or in the type
    of x for SPLIT = 1. one: see `offset_integers`. SLOTS: words of the widest part, of a row, in a stretch.
    """
    group, part = tl.program_id(0), tl.program_id(1)
    SPAN: tl.constexpr = 32 // WIDE  # columns of a word
    N: tl.constexpr = 2 if K <= 3 and TYPE != tl.float32 and not INTEGERS else 1
    ENTRY: tl.constexpr = tl.float32 if K < 6 or TYPE == tl.float32 else tl.float16
    SUM: tl.constexpr = SPAN if SPAN < BLOCK else BLOCK  # columns after which a scale is due
    slot, row = tl.arange(0, SLOTS), tl.arange(0, 16)[None, :]
    word = (slot % WIDE)[:, None]
    lowest, over = tl.load(levels), 1.0  # over: what the table's levels were divided by to suit their type
    if N == 2 and TYPE == tl.bfloat16:
        over = 1 / gain
    elif not INTEGERS and (N == 2 or ENTRY == tl.float16):
        over = largest_level(levels, K)
    if N == 2:
        table = pair_table(levels, 1 / over, K, WIDE, TYPE, TYPE == tl.float16)
    elif not INTEGERS:
        table = level_table(levels, 1 / over, K, ENTRY)
    sums = ()  # for each row of x; `partial` before their scale, `totals` those of the inputs alone
    for _ in tl.static_range(BATCH):
        sums += (tl.zeros([SLOTS, 16], tl.float32),)
    codes += group.to(tl.int64) * tiles * (K * 16)
    STEP: tl.constexpr = SLOTS // WIDE
    tile = tl.minimum(part * STEP + slot // WIDE, tiles - 1)
    words = load_words(codes, tile[:, None] * (K * 16) + row, word, K, WIDE)
    for first in range(part * STEP, tiles, SPLIT * STEP):
        start = (first + slot // WIDE) * 32 + slot % WIDE * SPAN
        # What comes from far is asked for before what is at hand is used: no load crosses a look-up's barrier.
        tile = tl.minimum(first + SPLIT * STEP + slot // WIDE, tiles - 1)
        next_words = load_words(codes, tile[:, None] * (K * 16) + row, word, K, WIDE)
        due = ()
        for column in tl.static_range(0, SPAN, SUM):
            place = ((start + column) // BLOCK)[:, None]
            due += (load_scale(scales, scale_levels, outer, zeros, group, place, row, rows, blocks, K, SCALE, ZERO),)
        partial, totals = (), ()
        for _ in tl.static_range(BATCH):
            partial += (tl.zeros([SLOTS, 16], tl.float32),)
            totals += (tl.zeros([SLOTS], tl.float32),)
        for i in tl.static_range(0, 8 // WIDE, N):
            inputs = ()
            for n in tl.static_range(N):
                for b in tl.static_range(BATCH):
                    column = start + 4 * (i + n)
                    inputs += (_load_inputs(x, (column + b * columns) // 4, column < columns, TYPE),)
            four = codes_of_step(words, i, N, K, WIDE)
            if INTEGERS:
                v0, v1, v2, v3 = offset_integers(four, one, K)
            else:
                even, odd = tl.split(look_up(table, split_bytes(four)))
                v0, v2 = tl.split(even)
                v1, v3 = tl.split(odd)
            for n in tl.static_range(N):
                if N == 2:
                    w0, w1, w2, w3 = (
                        float_of_pair(v0, n, TYPE),
                        float_of_pair(v1, n, TYPE),
                        float_of_pair(v2, n, TYPE),
                        float_of_pair(v3, n, TYPE),
                    )
                else:
                    w0, w1, w2, w3 = v0.to(tl.float32), v1.to(tl.float32), v2.to(tl.float32), v3.to(tl.float32)
                more, more_totals = (), ()
                for b in tl.static_range(BATCH):
                    x0, x1, x2, x3 = inputs[n * BATCH + b]
                    some = partial[b] + w0 * x0[:, None] + w1 * x1[:, None] + w2 * x2[:, None] + w3 * x3[:, None]
                    more += (some,)
                    more_totals += (totals[b] + ((x0 + x1) + (x2 + x3)),)
                partial, totals = more, more_totals
                if (4 * (i + n) + 4) % SUM == 0:
                    scale, zero = due[4 * (i + n) // SUM]
                    scaled, empty, no_totals = (), (), ()
                    for b in tl.static_range(BATCH):
                        total = totals[b][:, None]
                        # What is missing from the levels, and the zero, are the same for every column of a block.
                        some = partial[b] * over
                        if INTEGERS:
                            some += (lowest - 2**K) * total
                        if ZERO == "int":
                            some -= zero * total
                        some *= scale
                        if ZERO == "float":
                            some += zero * total
                        scaled += (sums[b] + some,)
                        empty += (tl.zeros([SLOTS, 16], tl.float32),)
                        no_totals += (tl.zeros([SLOTS], tl.float32),)
                    sums, partial, totals = scaled, empty, no_totals
        words = next_words
    at = group * 16 + tl.arange(0, 16)
    for b in tl.static_range(BATCH):
        y = tl.sum(sums[b], 0) * unit
        tl.store(out + (part * BATCH + b) * rows + at, y.to(out.dtype.element_ty), mask=at < rows)

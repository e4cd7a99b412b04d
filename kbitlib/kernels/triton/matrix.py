"""Many rows of input: tiles of the weight are decoded, then multiplied by tensor cores.

What is notable: a tile comes as words that hold steps of four columns each; reshaped and permuted it is the matrix that
a dot reads. Inputs of 8 bits, which `round_rows` makes, are multiplied with integers.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: SIM108, SIM300  (Triton decides what an if-else block leaves out; a kernel's capitals are arguments)

from __future__ import annotations

import triton
import triton.language as tl

from kbitlib.kernels.triton.decoding import (
    codes_of_step,
    largest_level,
    level_table,
    load_scale,
    load_words,
    look_up,
    pair_table,
    short_float,
    split_bytes,
)

CENTRED = tl.constexpr(2)  # what INTEGERS is where levels are -2^(K-1) to 2^(K-1) - 1; 1 for other consecutive integers


@triton.jit
def _steps(words, FIRST: tl.constexpr, APART: tl.constexpr, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr):
    """(...) words to (..., 2, 2, 2...): the bytes of every APART-th step of N from FIRST, a dimension a bit of each."""
    if APART * N * WIDE >= 8:
        found = split_bytes(codes_of_step(words, FIRST * N, N, K, WIDE))
    else:
        even = _steps(words, FIRST, 2 * APART, N, K, WIDE)
        found = tl.join(even, _steps(words, FIRST + APART, 2 * APART, N, K, WIDE))
    return found


@triton.jit
def round_rows(x, out, scale, columns, SPAN: tl.constexpr):
    """Each row of x in the format int8-row-fp32: out int8, scale float32 (rows,)."""
    row = tl.program_id(0)
    x += row.to(tl.int64) * columns
    out += row.to(tl.int64) * columns
    largest = tl.zeros([SPAN], tl.float32)
    for first in range(0, columns, SPAN):
        at = first + tl.arange(0, SPAN)
        largest = tl.maximum(largest, tl.abs(tl.load(x + at, mask=at < columns, other=0).to(tl.float32)))
    step = tl.div_rn(tl.max(largest, 0), 127.5)
    inverse = tl.where(step == 0, 0.0, tl.div_rn(1.0, step))
    for first in range(0, columns, SPAN):
        at = first + tl.arange(0, SPAN)
        value = tl.load(x + at, mask=at < columns, other=0).to(tl.float32) * inverse
        whole = (value + 12582912.0) - 12582912.0  # 1.5 * 2^23: what is added to it is rounded half to even
        tl.store(out + at, tl.minimum(whole, 127.0).to(tl.int8), mask=at < columns)
    tl.store(scale + row, step)


@triton.jit
def matrix_kernel(
    x, x_scale, codes, scales, scale_levels, outer, zeros, levels, out, unit, gain, batch, rows, columns, tiles, blocks,
    BLOCK: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr, INTEGERS: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, CLASS: tl.constexpr, SPLIT: tl.constexpr, GROUPS: tl.constexpr,
    BATCH: tl.constexpr, TILES: tl.constexpr, IN_TILE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A program multiplies BATCH rows of x with 16 GROUPS rows of the weight, in every SPLIT-th stretch of 32 TILES
    columns.

    TYPE: of x and of the decoded weight; int8 are whole numbers, whose scales are x_scale. IN_TILE: whether scales
    multiply the decoded weight, in bfloat16, which is as wide as any scale, rather than sums of products in float32.
    EVEN: whether stretches come out even. CLASS: how many rows x has, for `tuning`. out: (SPLIT, batch, rows) float32,
    or in the type of the product for SPLIT = 1.
    """
    GROUP_ROWS: tl.constexpr = 16 * GROUPS
    SLOTS: tl.constexpr = TILES * WIDE
    COLUMNS: tl.constexpr = TILES * 32
    PARTS: tl.constexpr = COLUMNS // BLOCK if COLUMNS > BLOCK and not IN_TILE else 1  # blocks in a stretch
    N: tl.constexpr = 2 if K <= 3 and TYPE != tl.float32 and not INTEGERS else 1
    HALF: tl.constexpr = tl.float16 if IN_TILE else TYPE
    ENTRY: tl.constexpr = tl.float32 if IN_TILE and N == 1 else HALF
    first_group, part = tl.program_id(1) * GROUPS, tl.program_id(2)
    last_group = (rows + 15) // 16 - 1
    group = tl.minimum(first_group + tl.arange(0, GROUPS), last_group)[:, None, None]
    slot, row = tl.arange(0, SLOTS)[None, :, None], tl.arange(0, 16)[None, None, :]
    one_row = tl.arange(0, GROUP_ROWS)[:, None]
    row_group = tl.minimum(first_group + one_row // 16, last_group)
    m = tl.program_id(0) * BATCH + tl.arange(0, BATCH)[None, :]
    k = tl.arange(0, COLUMNS)[:, None]
    x += tl.minimum(m, batch - 1).to(tl.int64) * columns + k
    lowest, over = tl.load(levels), 1.0  # over: what the table's levels were divided by to suit their type
    if not INTEGERS:
        if ENTRY == tl.float16:
            over = largest_level(levels, K)
        if ENTRY == tl.bfloat16:
            over = 1 / gain
        if N == 2:
            table = pair_table(levels, 1 / over, K, WIDE, HALF, True)
        else:
            table = level_table(levels, 1 / over, K, ENTRY)
    sums = tl.zeros([GROUP_ROWS, BATCH], tl.float32)
    if not IN_TILE:  # asked for a step ahead: what no dot reads is outside the compiler's pipeline
        scale, zero = load_scale(
            scales, scale_levels, outer, zeros, row_group, part * COLUMNS // BLOCK, one_row % 16, rows, blocks, K,
            SCALE, ZERO,
        )  # fmt: skip
    for first in range(part * TILES, tiles, SPLIT * TILES):
        tile = first + slot // WIDE
        at = (group.to(tl.int64) * tiles + (tile if EVEN else tl.minimum(tile, tiles - 1))) * (K * 16) + row
        found = _steps(load_words(codes, at, slot % WIDE, K, WIDE), 0, 1, N, K, WIDE)
        base = 0.0  # what is missing from every decoded level
        if not INTEGERS:
            found = look_up(table, found)
            if N == 2:
                found = tl.join(short_float(found, 0, HALF), short_float(found, 1, HALF))
        elif TYPE == tl.int8:
            found = (found - 2 ** (K - 1)).to(tl.int8)
            base = lowest + 2 ** (K - 1)
        elif IN_TILE:  # as `offset_integers`
            found = (found << 23 - K | (127 + K) << 23).to(tl.float32, bitcast=True)
            base = lowest - 2**K
        else:  # 2^23 + code, exact in float32
            found = ((found | 0x4B000000).to(tl.float32, bitcast=True) + (lowest - 8388608.0)).to(TYPE)
        weight = tl.reshape(found, [GROUPS, SLOTS, 16, 4, 8 // WIDE])
        if IN_TILE:
            place = (tile * 32 + slot % WIDE * (32 // WIDE)) // BLOCK
            scale, zero = load_scale(
                scales, scale_levels, outer, zeros, group, place, row, rows, blocks, K, SCALE, ZERO
            )
            if ZERO == "int":
                zero = -zero * scale
            weight = weight.to(tl.float32) * (scale * over)[:, :, :, None, None]
            if ZERO != "" or INTEGERS:
                weight += (zero + base * scale)[:, :, :, None, None]
            weight = weight.to(TYPE)
        weight = tl.reshape(tl.permute(weight, 0, 2, 1, 4, 3), [GROUP_ROWS, COLUMNS])
        x_tile = tl.load(x + first * 32, mask=None if EVEN else first * 32 + k < columns, other=None if EVEN else 0)
        if IN_TILE:
            sums = tl.dot(weight, x_tile, sums)
        else:
            next_scale, next_zero = load_scale(
                scales, scale_levels, outer, zeros, row_group, (first + SPLIT * TILES) * 32 // BLOCK, one_row % 16,
                rows, blocks, K, SCALE, ZERO,
            )  # fmt: skip
            for p in tl.static_range(PARTS):
                some_x = x_tile
                if PARTS > 1:  # a block at a time, the others' columns zero
                    some_x = tl.where(k // BLOCK == p, x_tile, tl.zeros_like(x_tile))
                if p > 0:
                    scale, zero = load_scale(
                        scales, scale_levels, outer, zeros, row_group, first * 32 // BLOCK + p, one_row % 16, rows,
                        blocks, K, SCALE, ZERO,
                    )  # fmt: skip
                if TYPE == tl.int8:
                    product = tl.dot(weight, some_x, out_dtype=tl.int32).to(tl.float32)
                else:
                    product = tl.dot(weight, some_x, input_precision="ieee")
                sums += product * (scale * over)
                if ZERO != "" or (TYPE == tl.int8 and INTEGERS != CENTRED):
                    total = tl.sum(some_x.to(tl.int32 if TYPE == tl.int8 else tl.float32), 0)[None, :].to(tl.float32)
                    if ZERO == "float":
                        sums += (scale * base + zero) * total
                    else:
                        sums += scale * (base - zero) * total
            scale, zero = next_scale, next_zero
    sums *= unit
    if TYPE == tl.int8:
        sums *= tl.load(x_scale + m, mask=m < batch, other=0)
    n = first_group * 16 + one_row
    at = (part.to(tl.int64) * batch + m) * rows + n
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=(m < batch) & (n < rows))

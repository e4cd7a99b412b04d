"""How kernels read a weight: words to codes, codes to levels, and the scale and zero of a block.

What is notable: a tile is read as it is stored (`kbitlib.kernels.layout`). The parts of a code are loaded apart and
brought together only in a byte of a register, where one mask serves the codes of four columns.

K is the bits of a code, WIDE those of its widest part, which are also the words that this part takes in a tile's row.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: SIM300  (a kernel's capitals are arguments)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_words(codes, at, word, K: tl.constexpr, WIDE: tl.constexpr):
    """The words of each part of a code: step i of all of them stands at bit (width i) of every byte.

    at: where the tile's first word of the row stands. word: which of the WIDE words of the widest part. A word of a
    narrower part serves several words of the widest, each of which finds its own steps shifted down.
    """
    words = (tl.load(codes + at + word * 16),)
    if K != WIDE:
        NEXT: tl.constexpr = 2 if K >= 6 else 1
        found = tl.load(codes + at + (WIDE + word * NEXT // WIDE) * 16)
        words += (found >> (word % (WIDE // NEXT)) * (NEXT * 8 // WIDE),)
    if K == 7:
        words += (tl.load(codes + at + 6 * 16) >> word * 2,)
    return words


@triton.jit
def codes_of_step(words, STEP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr):
    """The codes of a step, one a byte; for N = 2 those of the next step, too, above them in each part."""
    found = words[0]
    if K < 8:
        found = (found >> WIDE * STEP) & (0x01010101 * (2 ** (WIDE * N) - 1))
    if K != WIDE:
        NEXT: tl.constexpr = 2 if K >= 6 else 1
        found |= ((words[1] >> NEXT * STEP) & (0x01010101 * (2 ** (NEXT * N) - 1))) << WIDE * N
    if K == 7:
        found |= ((words[2] >> STEP) & 0x01010101) << 6
    return found


@triton.jit
def split_bytes(four):
    """(...) words to (..., 2, 2): byte 2 h + l of a word at [h, l]."""
    return tl.join(tl.join(four, four >> 16), tl.join(four >> 8, four >> 24)) & 255


@triton.jit
def level_table(levels, factor, K: tl.constexpr, TYPE: tl.constexpr):
    """The levels times a factor as TYPE, (2^K,)."""
    return (tl.load(levels + tl.arange(0, 2**K)) * factor).to(TYPE)


@triton.jit
def pair_table(levels, factor, K: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr, EXACT: tl.constexpr):
    """Every two levels times a factor, a word for each pair: (4^K,) int32, counted as `codes_of_step` joins two codes.

    The first of a pair is a TYPE, in the lower half. EXACT: the second is a TYPE, too. Else, for bfloat16, the whole
    word read as float32 is the second, chosen in knowledge of its lower half: as near its level as bfloat16 would be,
    and read without an instruction.
    """
    entry = tl.arange(0, 4**K)
    low, high = entry & (2**WIDE - 1), (entry >> WIDE) & (2**WIDE - 1)
    if K == 3:
        low, high = low | ((entry >> 4) & 1) << 2, high | (entry >> 5) << 2
    first = (tl.load(levels + low) * factor).to(TYPE).to(tl.uint16, bitcast=True).to(tl.int32)
    second = tl.load(levels + high) * factor
    if EXACT:
        upper = second.to(TYPE).to(tl.uint16, bitcast=True).to(tl.int32) << 16
    else:
        bits = second.to(tl.int32, bitcast=True)
        upper = tl.maximum((bits & 0x7FFFFFFF) - first + 0x8000, 0) & 0x7FFF0000 | (bits >> 31) << 31
    return first | upper


@triton.jit
def look_up(table, index):
    """The table's entry for each index, of any shape."""
    return tl.reshape(tl.gather(table, tl.reshape(index, [index.numel]), 0), index.shape)


@triton.jit
def short_float(word, place: tl.constexpr, TYPE: tl.constexpr):
    """The 16-bit float at a place of a word, 0 the lowest."""
    return (word >> 16 * place).to(tl.int16).to(TYPE, bitcast=True)


@triton.jit
def float_of_pair(pair, high: tl.constexpr, TYPE: tl.constexpr):
    """One level of an entry of a `pair_table` that is not EXACT for bfloat16, float32."""
    if TYPE == tl.bfloat16:
        value = (pair if high else pair << 16).to(tl.float32, bitcast=True)
    else:
        value = short_float(pair, high, TYPE).to(tl.float32)
    return value


@triton.jit
def offset_integers(four, one, K: tl.constexpr):
    """2^K + code for each of four bytes, float32: the code's bits put at the head of a mantissa.

    one: the bits of the float32 2^K. It is an argument of the kernel because the assembler masks and sets bits in one
    instruction only where the mask alone is a constant.
    """
    MASK: tl.constexpr = (2**K - 1) << (23 - K)
    v0 = ((four << 23 - K) & MASK) | one
    v1 = ((four << 15 - K) & MASK) | one
    v2 = ((four << 7 - K if K < 8 else four >> 1) & MASK) | one
    v3 = ((four >> 1 + K) & MASK) | one
    return (
        v0.to(tl.float32, bitcast=True),
        v1.to(tl.float32, bitcast=True),
        v2.to(tl.float32, bitcast=True),
        v3.to(tl.float32, bitcast=True),
    )


@triton.jit
def largest_level(levels, K: tl.constexpr):
    """The largest magnitude among levels, 1 where all are zero."""
    largest = tl.max(tl.abs(tl.load(levels + tl.arange(0, 2**K))), 0)
    return tl.where(largest > 0, largest, 1.0)


@triton.jit
def load_scale(
    scales, scale_levels, outer, zeros, group, place, row, rows, blocks, K: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr,
):  # fmt: skip
    """Scale and zero (the zero point, the minimum or 0) of rows `row` of groups, float32.

    place: which block of the row; past the last, the last. SCALE: how scales are stored, "one" or "one byte" for all of
    them, "float", "byte", or "two" levels. ZERO: "" where there are none, "int" zero points, "float" minima.
    """
    place = tl.minimum(place, blocks - 1)
    block = group * blocks + place
    at = block * 16 + row
    scale = tl.load(scales + (at * 0 if SCALE == "one" or SCALE == "one byte" else at))
    if SCALE != "one" and SCALE != "float":
        scale = tl.load(scale_levels + scale.to(tl.int32))
    scale = scale.to(tl.float32)
    if SCALE == "two":
        which = (tl.minimum(group * 16 + row, rows - 1) * blocks + place) // 256
        scale = scale * tl.load(outer + 1 + which) + tl.load(outer)
    zero = tl.zeros_like(scale)
    if ZERO == "float":
        zero = tl.load(zeros + at).to(tl.float32)
    if ZERO == "int":
        count = at * 0
        for j in tl.static_range(K):
            count |= ((tl.load(zeros + block * K + j).to(tl.int32) >> row) & 1) << j
        zero = count.to(tl.float32)
    return scale, zero

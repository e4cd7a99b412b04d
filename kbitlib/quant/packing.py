"""Codes to bytes and back, dense: k bits a code for k = 1..16, five base-3 digits a byte for ternary.

The first code stands in the highest bits of the first byte, whatever k is (at k = 4: the first of a pair in the high
nibble); codes run on over byte limits, and the last byte is filled up with zeros.
"""

from math import gcd

import torch
from torch import Tensor

TRITS = 5  # 3^5 = 243 values fit a byte


def packed_bytes(count: int, k: float) -> int:
    """How many bytes `count` codes of k bits take; k below 2 and above 1 is ternary."""
    return -(-count // TRITS) if 1 < k < 2 else -(-count * int(k) // 8)


def pack(codes: Tensor, k: float) -> Tensor:
    """(n,) codes below 2^k (below 3 for ternary), uint8 or from k = 9 int32 -> (packed_bytes(n, k),) uint8."""
    if k == 8:
        return codes
    if 1 < k < 2:
        return _pack_trits(codes)
    k = int(k)
    period = 8 // gcd(8, k)  # codes after which a byte limit comes round again
    columns = _rows_of(codes, period)
    packed = torch.zeros(columns.shape[0], period * k // 8, dtype=torch.uint8, device=codes.device)
    for i in range(period):
        for byte, shift in _places(i, k):
            part = columns[:, i] << shift if shift >= 0 else columns[:, i] >> -shift
            packed[:, byte] |= part.to(torch.uint8)  # what lies above the byte falls away
    return packed.flatten()[: packed_bytes(len(codes), k)]


def unpack(packed: Tensor, k: float, count: int) -> Tensor:
    """The first `count` codes, (count,) uint8 or from k = 9 int32, of what `pack` made."""
    if k == 8:
        return packed[:count]
    if 1 < k < 2:
        return _unpack_trits(packed, count)
    k = int(k)
    period = 8 // gcd(8, k)
    columns = _rows_of(packed, period * k // 8).to(torch.uint8 if k < 8 else torch.int32)
    codes = torch.zeros(columns.shape[0], period, dtype=columns.dtype, device=packed.device)
    for i in range(period):
        for byte, shift in _places(i, k):
            codes[:, i] |= columns[:, byte] >> shift if shift >= 0 else columns[:, byte] << -shift
    return (codes & (2**k - 1)).flatten()[:count]


def _places(i: int, k: int) -> list[tuple[int, int]]:
    """The bytes that hold code i of a period, and how far left it is shifted in each (negative: its upper bits)."""
    return [(byte, 8 * (byte + 1) - (i + 1) * k) for byte in range(i * k // 8, ((i + 1) * k - 1) // 8 + 1)]


def _rows_of(values: Tensor, width: int) -> Tensor:
    """(n,) -> (ceil(n/width), width), filled up with zeros."""
    missing = -len(values) % width
    return (torch.nn.functional.pad(values, (0, missing)) if missing else values).view(-1, width)


def _pack_trits(codes: Tensor) -> Tensor:
    packed = torch.zeros(packed_bytes(len(codes), 1.58), dtype=torch.uint8, device=codes.device)
    for column in _rows_of(codes, TRITS).unbind(1):
        packed = packed * 3 + column
    return packed


def _unpack_trits(packed: Tensor, count: int) -> Tensor:
    digits = []
    for _ in range(TRITS):
        digits.append(packed % 3)
        packed = packed // 3
    return torch.stack(digits[::-1], 1).flatten()[:count]

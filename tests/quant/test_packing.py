"""Dense packing of codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kbitlib.quant.packing import pack, packed_bytes, unpack

WIDTHS = [1, 1.58, *range(2, 17)]


@given(st.sampled_from(WIDTHS), st.integers(0, 131), st.integers(0, 2**31))
def test_codes_come_back_from_the_fewest_whole_bytes(k: float, count: int, seed: int) -> None:
    top = 3 if k == 1.58 else 2 ** int(k)
    dtype = torch.uint8 if k <= 8 else torch.int32
    codes = torch.randint(top, (count,), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    packed = pack(codes, k)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(count, k)
    assert torch.equal(unpack(packed, k, count), codes)
    assert unpack(packed, k, count).dtype == dtype


@pytest.mark.parametrize("k", range(1, 17))
def test_bits_stand_in_order_the_most_significant_first(k: int) -> None:
    codes = (torch.arange(29) * 40503 % 2**k).to(torch.uint8 if k <= 8 else torch.int32)
    bits = "".join(f"{int(code):0{k}b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    expected = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert pack(codes, k).tolist() == expected


def test_the_first_of_a_pair_of_nibbles_is_the_high_one() -> None:
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x12, 0x30]


def test_five_trits_a_byte_the_first_most_significant() -> None:
    assert pack(torch.tensor([2, 1, 0, 0, 1, 2], dtype=torch.uint8), 1.58).tolist() == [2 * 81 + 27 + 1, 2 * 81]

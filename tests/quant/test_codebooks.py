"""Levels of every data type, against the values and formulas of their sources."""

import numpy as np
import pytest
import torch

from kbitlib.quant import Format
from kbitlib.quant.codebooks import Element, codebook
from kbitlib.quant.rounding import nearest

NF4 = [
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
]  # fmt: skip


def levels(name: str) -> list[float]:
    return Format.parse(name).levels().tolist()


def test_nf4_is_that_of_bitsandbytes_to_the_bit() -> None:
    assert torch.equal(codebook("nf4").levels, torch.tensor(NF4))


@pytest.mark.parametrize("k", range(2, 9))
def test_normal_float_has_an_exact_zero_and_one_more_positive_level(k: int) -> None:
    found = levels(f"nf{k}")
    assert (found[0], found[-1], len(found)) == (-1, 1, 2**k)
    assert found.index(0) == 2 ** (k - 1) - 1


def test_bnbfp4_levels_by_code() -> None:
    positive = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
    assert torch.equal(codebook("bnbfp4").table, torch.cat([positive, -positive]))


def test_signed_dynamic_8_bit_map() -> None:
    found = np.array(levels("dynamic8"), dtype=np.float32)
    assert len(found) == 256
    assert found[0] == np.float32(-0.99296874)
    assert found[found > 0][0] == pytest.approx(5.5e-7, rel=1e-6)
    assert 0 in found
    assert found[-1] == 1


def test_dynamic_4_bit_map() -> None:
    positive = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    expected = [-x for x in reversed(positive)] + [0, *positive, 1]
    np.testing.assert_allclose(levels("dynamic4"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "dtype_name"),
    [("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")],
)
def test_8_bit_floats_round_as_torch_does_code_by_code(name: str, dtype_name: str) -> None:
    book, dtype = codebook(name), getattr(torch, dtype_name)
    top = float(book.levels[-1])
    middles = (book.levels[1:] + book.levels[:-1]) / 2  # where ties go to the even mantissa
    values = torch.cat([book.levels, middles, middles.nextafter(torch.tensor(0.0)), torch.linspace(-top, top, 99_999)])
    values = torch.where(values == 0, 0.0, values)  # torch keeps the sign of minus zero, nearest does not look at it
    assert torch.equal(nearest(values, book), values.to(dtype).view(torch.uint8))


@pytest.mark.parametrize(
    ("name", "positive"),
    [
        ("e2m1", [0.5, 1, 1.5, 2, 3, 4, 6]),
        ("e2m0", [1, 2, 4]),
        ("e1m0", [2]),
        ("e1m1", [1, 2, 3]),
        ("pot3", [0.25, 0.5, 1]),
        ("pot2", [1]),
        ("int3n", [1, 2, 3]),
    ],
)
def test_symmetric_levels(name: str, positive: list[float]) -> None:
    assert levels(name) == [-x for x in reversed(positive)] + [0, *positive]


@pytest.mark.parametrize(
    ("name", "largest"), [("e4m3", 448), ("e5m2", 57344), ("e2m3", 7.5), ("e3m2", 28), ("e2m1", 6)]
)
def test_largest_values_of_ocp_elements(name: str, largest: float) -> None:
    assert levels(name)[-1] == largest


def test_ocp_codes_are_sign_exponent_mantissa() -> None:
    table = codebook("e2m1").table
    assert table[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert torch.equal(table[8:], -table[:8])
    assert table[8].signbit()


def test_ties_of_floats_go_to_the_even_mantissa() -> None:
    found = codebook("e2m1").table[
        nearest(torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]), codebook("e2m1")).int()
    ]
    assert found.tolist() == [0, 1, 1, 2, 2, 4, 4]


def test_ties_of_other_codebooks_go_to_the_lower_level() -> None:
    book = codebook("nf4")
    assert torch.equal(nearest(book.thresholds, book), torch.arange(15, dtype=torch.uint8))
    above = book.thresholds.nextafter(torch.tensor(2.0))
    assert torch.equal(nearest(above, book), torch.arange(1, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    "name", [f"nf{k}" for k in (2, 5, 6, 8)] + ["e4m3", "pot4", "bnbfp4", "dynamic8", "e2m1", "int4"]
)
def test_nearest_agrees_with_a_search_over_all_levels(name: str) -> None:
    book = codebook(name)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * book.levels[-1] / 2
    distance = (x[:, None] - book.levels).abs()
    assert torch.equal((x - book.table[nearest(x, book).int()]).abs(), distance.min(1).values)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("int4", -8, 7), ("int4n", -7, 7), ("int4s", -8, 7), ("ternary", -1, 1)]
)
def test_integer_conventions(name: str, low: int, high: int) -> None:
    assert levels(name) == list(range(low, high + 1))


def test_fixed_point_counts_its_sign_in_the_integer_bits() -> None:
    assert levels("q2.2") == [i / 4 for i in range(-8, 8)]


def test_levels_that_depend_on_the_tensor_are_refused() -> None:
    for name in ("kmeans4", "quantile4", "log4"):
        with pytest.raises(ValueError, match="depend on the tensor"):
            Format.parse(name).levels()


@pytest.mark.parametrize(
    "name", ["nf9", "int1n", "e8m0", "e0m3", "q0.4", "q5.4", "vq3c8", "vq2c13", "e8c7", "e8c17", "NF4", "", "nf４"]
)
def test_unknown_elements_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(ValueError, match=rf'unknown element "{name}": allowed are int2\.\.int8 '):
        Element.parse(name)

"""The grammar of format strings and the bits they promise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbitlib.quant import Format
from kbitlib.quant.format import GGUF, every_format


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nf4", "nf4-b64"),
        ("int1", "binary-b64"),
        ("fp4", "e2m1-b64"),
        ("fp8", "e4m3-b64"),
        ("mxfp4", "e2m1-b32-e8m0"),
        ("mxfp6", "e2m3-b32-e8m0"),
        ("mxfp8", "e4m3-b32-e8m0"),
        ("nvfp4", "e2m1-b16-e4m3"),
        ("int3-b128-zp", "int3-b128-zp"),
        ("nf4-b64-fp16", "nf4-b64"),
        ("nf4-fp16-p099.90", "nf4-b64-p99.9"),
        ("int4-tensor-zpf-bf16-mse", "int4-tensor-zpf-bf16-mse"),
        ("e4m3-row-e4m3", "e4m3-row-e4m3"),
        ("q2.6", "q2.6"),
        ("vq2c8", "vq2c8-b64"),
        ("e8c16-row-e4m3-mse", "e8c16-row-e4m3-mse"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert str(Format.parse(text)) == canonical
    assert Format.parse(canonical) == Format.parse(text)


@given(
    st.sampled_from([f.name for f in every_format()]),
    st.sampled_from(["", "-row", "-tensor", "-b1", "-b37", "-b64", "-b32"]),
    st.sampled_from(["", "-zp", "-zpf"]),
    st.sampled_from(["", "-fp32", "-fp16", "-bf16", "-e8m0", "-e4m3", "-dq"]),
    st.sampled_from(["", "-mse", "-p99.9", "-p50"]),
)
def test_what_parses_prints_back(name: str, block: str, zero: str, scale: str, range_: str) -> None:
    try:
        format = Format.parse(name + block + zero + scale + range_)
    except ValueError:
        return
    assert Format.parse(str(format)) == format
    assert Format(format.name, format.block, format.zero, format.scale, format.range) == format


@pytest.mark.parametrize("format", every_format(), ids=str)
def test_every_format_prints_back(format: Format) -> None:
    assert Format.parse(str(format)) == format


def test_every_format_names_each_width_once() -> None:
    names = [str(format) for format in every_format()]
    assert len(set(names)) == len(names)
    assert {"int2-b64", "nf8-b64", "log5-b64", "binary-b64", "ternary-b64", "e2m1-b16-e4m3"} <= set(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nf9-b64", "int2..int8"),
        ("vq3c8", "vqDcB with D 2, 4 or 8"),
        ("vq2c13", "B in 2..12"),
        ("e8c17", "e8cB with B in 8..16"),
        ("e8c8-b60", "whole vectors: a multiple of 8"),
        ("vq2c8-zp", "only int2..int8 take a zero point"),
        ("vq2c8-dq", "no level zero"),
        ("vq2c8-mse", "takes no range"),
        ("vq2c8-p99", "takes no percentile range"),
        ("e8c8-p99", "takes no percentile range"),
        ("e8c8-e8m0", "too coarse"),
        ("int4-zp-b64", "in this order"),
        ("int4-row-tensor", "in this order"),
        ("int4-b-3", "in this order"),
        ("int4-", "in this order"),
        ("int4-b0", "N at least 1"),
        ("nf4-b64-zp", "only int2..int8 take a zero point"),
        ("int4n-zp", "only int2..int8 take a zero point"),
        ("kmeans4-dq", "no level zero"),
        ("binary-e8m0", "no level zero"),
        ("int4s-e8m0", "no sign"),
        ("binary-mse", "takes no range"),
        ("kmeans4-p99", "takes no percentile range"),
        ("int4-p0", "above 0 and below 100"),
        ("int4-p100", "above 0 and below 100"),
        ("q2.6-b64", "no scale"),
    ],
)
def test_bad_formats_are_refused_in_one_sentence_that_names_them(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Format.parse(text)
    assert text.split("-")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given_", [None, 4, Format.parse("nf4")])
def test_what_is_no_string_is_refused(given_: object) -> None:
    with pytest.raises(ValueError, match="a format is a string"):
        Format.parse(given_)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [-2, True, 1.5])
def test_a_block_is_an_integer(block: int) -> None:
    with pytest.raises(ValueError, match="a block is"):
        Format("nf4", block)


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("nf4-b64-fp32", (4096, 4096), 4.5),
        ("int4-b64", (4096, 4096), 4.25),
        ("int4-b64-zp", (4096, 4096), 4.3125),
        ("int4-b64-zpf", (4096, 4096), 4.5),
        ("mxfp4", (4096, 4096), 4.25),
        ("nvfp4", (4096, 4096), 4.5 + 32 / 4096**2),
        ("nf4-b64-dq", (4096, 4096), 4 + 8 / 64 + 32 / (64 * 256) + 32 / 4096**2),
        ("kmeans3-b64", (64, 64), 3.25 + 8 * 16 / 4096),
        ("log4-b64", (64, 64), 4.5),
        ("ternary-b64", (1, 320), 1.6 + 16 / 64),
        ("q2.6", (7, 3), 8.0),
        ("vq2c8-b64", (64, 64), 4.25 + 8 * 2 * 256 * 2 / 4096),
        ("vq8c12-row", (4, 9), 8 * (4 * 2 * 1.5 + 4 * 2 + 2 * 8 * 4096) / 36),  # two codes a row, the second filled up
        ("e8c11-b64", (8, 64), 11 / 8 + 0.25),
        ("e8c11-tensor", (3, 3), 8 * (3 + 2) / 9),  # 22 bits take three bytes
        ("int3-b64", (1, 3), 8 * (2 + 2) / 3),
        ("int3-b64", (0, 64), 0.0),
    ],
)
def test_exact_bits(text: str, shape: tuple[int, ...], bits: float) -> None:
    assert Format.parse(text).bits_per_weight(shape) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "element", "k", "block"),
    [
        ("int4n-row", "int", 4, 0),
        ("log3-b64", "log", 3, 64),
        ("ternary-tensor", "ternary", 1.58, -1),
        ("int1", "binary", 1, 64),
        ("vq4c10-row", "vq", 2.5, 0),
        ("e8c9", "e8", 1.125, 64),
    ],
)
def test_words_for_records(text: str, element: str, k: float, block: int) -> None:
    format = Format.parse(text)
    assert (format.element, format.k, format.block) == (element, k, block)


def test_llama_cpps_bits_per_weight() -> None:
    bits = {name: 8 * size / weights for name, (size, weights, _) in GGUF.items()}
    published = {
        "Q2_K": 2.625,
        "Q3_K": 3.4375,
        "Q4_K": 4.5,
        "Q5_K": 5.5,
        "Q6_K": 6.5625,
        "IQ2_XXS": 2.0625,
        "Q8_0": 8.5,
    }
    assert published.items() <= bits.items()  # as ggml-common.h's comments have them
    ours = {name: Format.parse(same).bits_per_weight((64, 256)) for name, (_, _, same) in GGUF.items() if same}
    assert ours == {name: bits[name] for name in ours}
    assert {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"} == set(ours)

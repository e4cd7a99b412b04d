"""Tiles: what products read is what was quantized, bit for bit, in no more room."""

from dataclasses import replace

import pytest
import torch

from kbitlib.kernels import PackedWeight, decode, obstacle, pack
from kbitlib.kernels.layout import COLUMNS, PARTS, ROWS, best_gain, pack_codes, unpack_codes
from kbitlib.methods.calibration import InputStatistics
from kbitlib.methods.outliers import split_outliers
from kbitlib.quant import Format, QuantizedTensor, quantize
from kbitlib.quant.format import every_format
from kbitlib.quant.packing import pack as pack_rows

SHAPES = [(16, 64), (37, 100), (5, 7), (33, 700), (1, 1), (0, 64), (5, 0)]
FORMATS = [str(format) for format in every_format()] + [
    "int4-b16", "nf4-b32", "int4-b128-zp", "int8-row", "nf3-tensor", "int4-b16-zpf", "int4-tensor-zp",
    "int4-tensor-zpf", "nf5-b96", "int4-b320-zp", "nf4-b64-bf16", "nf4-b64-dq", "nf4-b64-fp32", "e3m2-b32-e4m3",
]  # fmt: skip
TAKEN = [name for name in FORMATS if not obstacle(Format.parse(name), 64)]


def packed(shape: tuple[int, int], format: str, seed: int = 0) -> tuple[QuantizedTensor, PackedWeight]:
    weight = quantize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), format)
    return weight, pack(weight)


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back(shape: tuple[int, int], k: int) -> None:
    codes = torch.randint(0, 2**k, shape, dtype=torch.uint8)
    tiles = pack_codes(pack_rows(codes.flatten(), k), k, *shape)
    assert tiles.shape == (-(-shape[0] // ROWS), -(-shape[1] // COLUMNS), k, ROWS)
    assert torch.equal(unpack_codes(tiles, *shape), codes)


def test_conversion_in_several_goes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 8, (100, 96), dtype=torch.uint8)
    whole = pack_codes(pack_rows(codes.flatten(), 3), 3, 100, 96)
    monkeypatch.setattr("kbitlib.kernels.layout.AT_ONCE", 1)
    assert torch.equal(pack_codes(pack_rows(codes.flatten(), 3), 3, 100, 96), whole)


@pytest.mark.parametrize("k", range(1, 9))
def test_codes_stand_where_the_layout_says(k: int) -> None:
    row, column, tile = 5, 27, 2
    for bit in range(k):
        codes = torch.zeros(ROWS, 3 * COLUMNS, dtype=torch.uint8)
        codes[row, tile * COLUMNS + column] = 1 << bit
        words = pack_codes(pack_rows(codes.flatten(), k), k, *codes.shape)
        first = low = 0
        for width in PARTS[k]:
            if bit < low + width:
                break
            first, low = first + width, low + width
        step, byte = column // 4, column % 4
        word = first + step // (8 // width)
        expected = torch.zeros_like(words)
        expected[0, tile, word, row] = torch.tensor(
            1 << 8 * byte + width * (step % (8 // width)) + bit - low
        ).to(torch.uint32).view(torch.int32)  # fmt: skip
        assert torch.equal(words, expected)


@pytest.mark.parametrize("format", TAKEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_is_what_it_was(shape: tuple[int, int], format: str) -> None:
    if obstacle(Format.parse(format), shape[1]):
        pytest.skip(f"{format} has blocks that do not fit tiles of a matrix this wide")
    weight, tiles = packed(shape, format)
    torch.testing.assert_close(decode(tiles), weight.dequantize(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("format", TAKEN)
def test_whole_tiles_take_what_the_format_says(format: str) -> None:
    weight, tiles = packed((64, 320), format)
    if obstacle(weight.format, 320):
        pytest.skip(f"{format} has blocks that do not fit tiles of a matrix this wide")
    stored = {name: tensor.nbytes for name, tensor in tiles.tensors.items()}
    tables = stored.pop("levels") + stored.pop("scale_levels", 0)  # of the data type, not of the weight
    assert tables <= 2 * 1024
    said = dict(weight.format.stored_bytes(weight.shape))
    said.pop("codebook", None)
    if weight.format.scale == "e4m3":
        said.pop("outer_scales")  # one number, held beside the tensors
    if weight.format.block < 0:
        assert stored["scales"] == 4 or weight.format.zero != "none"  # one number; with a zero, one for every row
        return
    padding = 4 if weight.scales is None else 0
    if weight.format.zero == "zp":
        padding = stored["zeros"] - said["zeros"]
        assert padding <= 2 * tiles.zeros.numel() - said["zeros"]  # masks of 16 rows
    assert sum(stored.values()) == sum(said.values()) + padding


@pytest.mark.parametrize("format", ["log4", "ternary", "vq2c8", "e8c8", "int4-b48", "int4-b20"])
def test_what_is_not_packed_says_why(format: str) -> None:
    weight = quantize(torch.randn(4, 96), format)
    with pytest.raises(ValueError, match="so it cannot be packed for products") as error:
        pack(weight)
    assert str(weight.format) in str(error.value)


def test_outliers_and_other_ranks_are_refused() -> None:
    inputs = torch.ones(4, 64)
    inputs[:, 3] = 100
    with pytest.raises(ValueError, match="outlier columns"):
        pack(split_outliers(torch.randn(8, 64), InputStatistics.of(inputs), Format.parse("int4")))
    with pytest.raises(ValueError, match=r"the shape \(2, 3, 64\)"):
        pack(quantize(torch.randn(2, 3, 64), "int4"))


def test_integers_need_no_gain() -> None:
    assert best_gain(torch.arange(-8.0, 8.0), torch.arange(16), 64) == 1.0


@pytest.mark.parametrize("format", ["nf3", "nf4", "nf5", "nf8", "kmeans4"])
def test_a_gain_leaves_levels_right_on_average(format: str) -> None:
    weight, tiles = packed((64, 512), format)
    codes = unpack_codes(tiles.codes, *weight.shape).int()
    exact, rounded = ((tiles.levels.double() * g)[codes] for g in (1.0, tiles.gain))
    lost = rounded.bfloat16().double() / tiles.gain - exact
    plain = exact.bfloat16().double() - exact
    assert 1 < tiles.gain < 2
    assert abs(float(lost.mean())) < 2e-5 < 0.1 * float(plain.std())
    assert lost.square().mean() < 1.5 * plain.square().mean()


def test_moving_takes_every_tensor_along() -> None:
    _, tiles = packed((16, 64), "nf4-b64-dq")
    moved = tiles.to("meta")
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert moved.tensors.keys() == tiles.tensors.keys()
    assert replace(tiles).nbytes == tiles.nbytes

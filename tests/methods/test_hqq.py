"""HQQ against its own aim, and against the package of its authors."""

import pytest
import torch
from torch import Tensor

from kbitlib.methods.calibration import InputStatistics
from kbitlib.methods.hqq import NORM, hqq
from kbitlib.quant import Format, QuantizedTensor, quantize
from kbitlib.quant.blocks import Blocks
from kbitlib.quant.rounding import decode


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, weight: Tensor) -> float:
    return float((found - weight).norm() / weight.norm())


def cost_of_blocks(packed: QuantizedTensor, weight: Tensor, block: int) -> Tensor:
    return (packed.dequantize() - weight).abs().pow(NORM).view(-1, block).sum(1)


@pytest.mark.parametrize("k", range(2, 9))
@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_no_block_is_worse_than_with_its_minimum(k: int, scale: float) -> None:
    weight, name = scale * normal(32, 256), f"int{k}-b64-zpf"
    rounded, found = quantize(weight, name), hqq(weight, None, name)
    before, after = cost_of_blocks(rounded, weight, 64), cost_of_blocks(found, weight, 64)
    assert (after <= before * (1 + 1e-6)).all()  # float32 sums of the same errors in another order
    assert after.sum() < 0.99 * before.sum()
    assert relative_error(found.dequantize(), weight) < relative_error(rounded.dequantize(), weight)


@pytest.mark.parametrize(
    "name", ["int4-b64-zpf", "int2-b7-zpf-bf16", "int3-row-zpf", "int4-tensor-zpf", "int3-b64-zpf-mse"]
)
def test_codes_are_the_nearest_levels_against_what_is_stored(name: str) -> None:
    """Only the zero points differ from `quantize`, and they are 16-bit numbers, as are the scales."""
    weight = normal(5, 70)
    found, rounded = hqq(weight, None, name), quantize(weight, name)
    assert found.bits_per_weight == Format.parse(name).bits_per_weight(weight.shape)
    assert found.scales is not None
    assert rounded.scales is not None
    assert torch.equal(found.scales, rounded.scales)
    blocks, format = Blocks.of(weight.shape, found.format.block), found.format
    matrices = (matrix.reshape(blocks.rows, blocks.columns) for matrix in (weight, found.dequantize()))
    for part, given, grid in zip(*map(blocks.split, matrices), found.grids(), strict=True):
        codes = torch.arange(2 ** int(format.k), dtype=torch.uint8).expand(*part.shape[:2], -1)
        least = (part[..., None] - decode(codes, grid)[:, :, None]).abs().amin(-1)
        assert ((given - part).abs() <= least + 1e-6).all()  # a value between two levels may go to either


def test_statistics_do_not_matter() -> None:
    weight = normal(4, 64)
    found = hqq(weight, InputStatistics.of(normal(9, 64, seed=1)), "int3-b64-zpf")
    assert torch.equal(found.dequantize(), hqq(weight, None, "int3-b64-zpf").dequantize())


def test_blocks_of_one_value() -> None:
    weight = torch.tensor([[0.0] * 8, [0.3] * 8, [-2.0] * 8])
    found = hqq(weight, None, "int3-b8-zpf").dequantize()
    torch.testing.assert_close(found, weight, rtol=2**-11, atol=0)  # half a unit in the last place of float16


@pytest.mark.parametrize("name", ["int4", "int4-b64-zp", "nf4", "binary", "vq2c8"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="hqq takes integers with a float zero point, such as int4-b64-zpf, not"):
        hqq(normal(4, 64), None, name)


@pytest.mark.parametrize("k", [3, 4])
def test_error_within_one_percent_of_the_package(k: int) -> None:
    peer = pytest.importorskip(
        "hqq.core.quantize", reason="hqq is not installed: pip install 'kbit-lab[peers]'"
    ).Quantizer
    torch.manual_seed(0)
    weight = torch.randn(512, 1024)
    codes, meta = peer.quantize(weight, nbits=k, group_size=64, axis=1, device="cpu", compute_dtype=torch.float32)
    theirs = relative_error(peer.dequantize(codes, meta).view_as(weight), weight)
    assert relative_error(hqq(weight, None, f"int{k}-b64-zpf").dequantize(), weight) == pytest.approx(theirs, rel=0.01)

"""Formats against the packages that have them too: codes and scales, bit for bit, on rows of whole blocks.

``ml_dtypes`` (the five OCP elements), bitsandbytes (NF4, FP4, dynamic 8 bits, double quantization) and torchao (affine
integers, MX).
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kbitlib.quant import QuantizedTensor, quantize
from kbitlib.quant.codebooks import codebook
from kbitlib.quant.packing import unpack


def peer(name: str) -> Any:
    """A package, or the reason why its tests are skipped."""
    package = name.partition(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer deprecates in itself
        return pytest.importorskip(name, reason=f"{package} is not installed: pip install 'kbit-lab[peers]'")


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """(64, 4096) with heavy tails and rows of very different size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 4096, generator=generator) * torch.randn(64, 4096, generator=generator).abs()
    return (x * torch.logspace(-3, 1, 64)[:, None]).to(dtype)


# --- ml_dtypes ---

NAMES = {
    "e2m1": "float4_e2m1fn",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
}


@pytest.mark.parametrize(("name", "theirs"), NAMES.items())
def test_levels_are_the_finite_values_of_the_type(name: str, theirs: str) -> None:
    dtype = np.dtype(getattr(peer("ml_dtypes"), theirs))
    bits = {"e2m1": 4, "e2m3": 6, "e3m2": 6}.get(name, 8)
    values = np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float32)
    finite = np.unique(values[np.isfinite(values)])
    assert torch.equal(codebook(name).levels.unique(), torch.from_numpy(finite))


# --- bitsandbytes ---

NF4_AND_FP4 = {"nf4": "nf4", "bnbfp4": "fp4"}
BLOCKS = [32, 64, 128, 256, 512, 1024, 2048, 4096]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", NF4_AND_FP4)
def test_four_bits_are_those_of_bitsandbytes(name: str, block: int, dtype: torch.dtype) -> None:
    functional = peer("bitsandbytes.functional")
    x = weights(dtype)
    codes, state = functional.quantize_4bit(x, blocksize=block, quant_type=NF4_AND_FP4[name])
    ours = quantize(x, f"{name}-b{block}-fp32")
    assert ours.scales is not None
    assert torch.equal(ours.scales.flatten(), state.absmax)
    assert torch.equal(ours.codes, codes.flatten())
    assert ours.nbytes == codes.nbytes + state.absmax.nbytes


@pytest.mark.parametrize("name", NF4_AND_FP4)
def test_four_bits_stand_for_the_values_of_bitsandbytes(name: str) -> None:
    functional = peer("bitsandbytes.functional")
    x = weights()
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(x, blocksize=64, quant_type=NF4_AND_FP4[name]))
    assert torch.equal(quantize(x, f"{name}-b64-fp32").dequantize(), theirs)


def sixteen_bit_dynamic(normalised: Tensor) -> Tensor:
    """The codes that bitsandbytes 0.50 gives values of -1..1 on a CPU, (n,) uint8.

    It rounds each to one of 65,536 even steps, whose nearest levels it has in a table: not always the value's own.
    """
    steps = ((normalised + 1) * 32767.5 + 0.5).floor() / 32767.5 - 1
    return torch.bucketize(steps, codebook("dynamic8").thresholds).to(torch.uint8)


def assert_dynamic(ours: Tensor, theirs: Tensor, normalised: Tensor) -> None:
    """Theirs are exactly the nearest levels of values rounded to 16 bits; ours, of the values themselves.

    So the two are equal for a value that is not within half a step of a threshold between levels.
    """
    assert torch.equal(theirs, sixteen_bit_dynamic(normalised))
    thresholds = codebook("dynamic8").thresholds.double()
    near = torch.bucketize(normalised.double(), thresholds).clamp(1, len(thresholds) - 1)
    distance = torch.stack([(normalised - thresholds[near - i]).abs() for i in (0, 1)]).amin(0)
    clear = distance > 0.5 / 32767.5 + 2**-23  # and what float32 loses in theirs
    assert torch.equal(ours[clear], theirs[clear])
    assert clear.float().mean() > 0.9  # or this would say nothing
    levels = codebook("dynamic8").levels.double()
    error = [(levels[codes.int()] - normalised).abs() for codes in (ours, theirs)]
    assert (error[0] <= error[1] + 2**-24).all()  # ours is never the further one, but for float32 ties


@pytest.mark.parametrize("block", [64, 128, 256, 512, 1024, 2048, 4096])
def test_eight_dynamic_bits_against_bitsandbytes(block: int) -> None:
    functional = peer("bitsandbytes.functional")
    x = weights()
    theirs, state = functional.quantize_blockwise(x, blocksize=block)
    assert torch.equal(state.code, codebook("dynamic8").levels)
    ours = quantize(x, f"dynamic8-b{block}-fp32")
    assert ours.scales is not None
    assert torch.equal(ours.scales.flatten(), state.absmax)
    normalised = (x.view(-1, block) * (1 / state.absmax[:, None])).flatten()
    assert_dynamic(ours.codes, theirs.flatten(), normalised)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", NF4_AND_FP4)
def test_double_quantization_against_bitsandbytes(name: str, block: int) -> None:
    """The same codes, mean and second scales; the scales' 8-bit codes as `assert_dynamic` says."""
    functional = peer("bitsandbytes.functional")
    x = weights()
    codes, state = functional.quantize_4bit(x, blocksize=block, quant_type=NF4_AND_FP4[name], compress_statistics=True)
    plain = functional.quantize_4bit(x, blocksize=block, quant_type=NF4_AND_FP4[name])[1].absmax
    ours = quantize(x, f"{name}-b{block}-dq")
    assert torch.equal(ours.codes, codes.flatten())
    assert ours.scales is not None
    assert ours.outer_scales is not None
    assert ours.outer_scales[0] == state.offset
    assert torch.equal(ours.outer_scales[1:], state.state2.absmax)
    second = state.state2.absmax.repeat_interleave(256)[: len(plain)]
    assert_dynamic(ours.scales.flatten(), state.absmax, (plain - state.offset) * (1 / second))
    assert ours.nbytes == codes.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes


# --- torchao ---


def affine(x: Tensor, bits: int, group: int, mapping: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torchao's codes (from 0), scales, zero points (from 0) and dequantized values."""
    torchao = peer("torchao.quantization.quant_primitives")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale, zero = torchao.choose_qparams_affine(
        x, torchao.MappingType[mapping], (1, group), torch.int8, low, high, scale_dtype=torch.float32
    )
    codes = torchao.quantize_affine(x, (1, group), scale, zero, torch.int8, low, high)
    values = torchao.dequantize_affine(codes, (1, group), scale, zero, torch.int8, low, high)
    return codes.int() - low, scale, zero - low, values


@pytest.mark.parametrize("group", [32, 64, 128, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("mapping", "zero"), [("SYMMETRIC", ""), ("ASYMMETRIC", "-zp")])
def test_integers_are_those_of_torchao(bits: int, group: int, mapping: str, zero: str) -> None:
    x = weights(seed=bits)
    codes, scale, zeros, values = affine(x, bits, group, mapping)
    ours = quantize(x, f"int{bits}-b{group}{zero}-fp32")
    assert ours.scales is not None
    assert torch.equal(ours.scales.flatten(), scale.flatten())
    assert torch.equal(unpack(ours.codes, bits, x.numel()).view(x.shape).int(), codes)
    if ours.zeros is not None:
        assert torch.equal(unpack(ours.zeros, bits, zeros.numel()).view(zeros.shape).int(), zeros.int())
    assert torch.equal(ours.dequantize(), values)


MX = {
    "e2m1": "float4_e2m1fn_x2",
    "e2m3": "fp6_e2m3",
    "e3m2": "fp6_e3m2",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
}


def mx_codes(ours: QuantizedTensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Both as one code a weight, uint8; of a pair of 4 bits torchao has the first in the low half of a byte."""
    theirs = theirs.view(torch.uint8).flatten()
    if ours.format.k == 4:
        theirs = torch.stack([theirs & 15, theirs >> 4], 1).flatten()
    return unpack(ours.codes, ours.format.k, ours.shape.numel()), theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "theirs"), MX.items())
def test_mx_is_that_of_torchao(name: str, theirs: str, dtype: torch.dtype) -> None:
    mx = peer("torchao.prototype.mx_formats.mx_tensor")
    x = weights(dtype)
    x[0, :64] = 0
    element = getattr(torch, theirs, theirs)
    scales, values = mx.to_mx(x, element, 32, mx.ScaleCalculationMode.FLOOR)
    ours = quantize(x, f"{name}-b32-e8m0")
    assert ours.scales is not None
    assert torch.equal(ours.scales.view(torch.uint8), scales.view(torch.uint8))
    code, their_code = mx_codes(ours, values)
    zero = x.flatten() == 0  # both zeros stand for zero
    assert torch.equal(code[~zero], their_code[~zero])
    table = codebook(name).table
    assert not table[code[zero].int()].any()
    assert not table[their_code[zero].int()].any()
    assert torch.equal(ours.dequantize(), mx.to_dtype(values, scales, element, 32, dtype))

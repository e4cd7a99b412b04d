"""What theory predicts, against published values, closed forms, and the quantizer itself."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kbitlib.quant import Format, bounds, quantize
from kbitlib.quant.format import every_format

# Max 1960, table I (any levels) and table II (even ones): mean squared error at 2, 4, 8, 16 and 32 levels. From 8 on
# his table I prints a little less than is possible (.03454, .009497, .002499); these are the least errors there are.
MAX = {1: 0.3634, 2: 0.1175, 3: 0.03455, 4: 0.009501, 5: 0.002505}
MAX_EVEN = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495}

SCALAR = [str(format) for format in every_format() if format.kind not in ("vq", "e8")]
LEARNED = [format for format in SCALAR if Format.parse(format).learned]


@pytest.fixture(scope="module")
def gaussian() -> Tensor:
    return torch.randn(256, 1024, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("k", MAX)
def test_the_table_of_max(k: int) -> None:
    levels, error = bounds.lloyd_max(k)
    assert float(f"{error:.4g}") == MAX[k]
    assert len(levels) == 2**k
    assert bounds.codebook_error(levels) == error
    assert float(f"{bounds.best_uniform(k)[1]:.4g}") == MAX_EVEN[k]


def test_limits_at_many_bits() -> None:
    # Max's error falls towards Panter and Dite's from below, the even grid's stays behind.
    ratios = [bounds.lloyd_max(k)[1] / bounds.panter_dite(k) for k in range(2, 9)]
    assert ratios == sorted(ratios)
    assert 0.99 < ratios[-1] < 1
    assert bounds.best_uniform(8)[1] > 2 * bounds.panter_dite(8)
    assert bounds.shannon(1) / bounds.shannon(2) == 4


def test_an_entropy_coder_leaves_a_quarter_of_a_bit() -> None:
    rate, error = bounds.entropy_coded(0.02)
    # pi e / 6: 1.53 dB, or 0.254 bit; at this step all but 1e-4 of it
    assert error / bounds.shannon(rate) == pytest.approx(math.pi * math.e / 6, rel=1e-4)
    assert error == pytest.approx(bounds.uniform_error(0.02), rel=1e-4)
    coarse = [bounds.entropy_coded(step) for step in (0.5, 1.0, 2.0, 4.0)]
    assert all(error > bounds.shannon(rate) for rate, error in coarse)


@pytest.mark.parametrize("n", [1, 2, 64])
def test_the_largest_of_n(n: int) -> None:
    sample = np.random.default_rng(0).standard_normal((40_000, n)).__abs__().max(1)
    for power in (1, 2):
        values = sample**power
        assert abs(bounds.expected_absmax(n, power) - values.mean()) < 4 * values.std() / 200
    assert bounds.expected_absmax(1) == pytest.approx(math.sqrt(2 / math.pi), abs=1e-6)  # of the steps of integration


def measured(x: Tensor, format: str) -> tuple[float, float]:
    """Relative squared error of blocks of 64, and the standard error of this ratio of two means over blocks."""
    error = (quantize(x, format).dequantize() - x).double().square().view(-1, 64).sum(1)
    square = x.double().square().view(-1, 64).sum(1)
    ratio = float(error.sum() / square.sum())
    return ratio, float((error - ratio * square).std() / square.mean() / len(error) ** 0.5)


@pytest.mark.parametrize("format", [format for format in SCALAR if format not in LEARNED])
def test_the_quantizer_does_what_is_predicted(gaussian: Tensor, format: str) -> None:
    # 4 standard errors of 4,096 blocks, each .3 to 2 % of the ratio: one comparison in 16,000 is beyond by chance
    error, standard_error = measured(gaussian, format)
    assert abs(error - bounds.gaussian_error(format)) < 4 * standard_error


@pytest.mark.parametrize("format", LEARNED)
def test_learned_levels_come_close_to_those_of_an_endless_tensor(gaussian: Tensor, format: str) -> None:
    # The sample moves the levels too: the outermost quantile by up to 3 %. And 2^k means fit its noise: shifting many
    # levels together costs little, so the gain is more than the 2^k / N of fitted means; 12 times that, at these N.
    error, standard_error = measured(gaussian, format)
    allowed = 0.03 if format.startswith("quantile") else 12 * 2.0 ** Format.parse(format).k / gaussian.numel()
    assert abs(error - bounds.gaussian_error(format)) < 4 * standard_error + allowed * error


@pytest.mark.parametrize("n", [8, 64, 1024])
def test_binary_in_closed_form(n: int) -> None:
    # E (|x| - a)^2 of a mean magnitude a over n: (1 - 2/pi) (1 - 1/n)
    assert bounds.gaussian_error("binary", n) == pytest.approx((1 - 2 / math.pi) * (1 - 1 / n), rel=1e-4)


def test_blocks_of_a_row_are_as_long_as_they_are_said_to_be() -> None:
    assert bounds.gaussian_error("nf4-row", 64) == bounds.gaussian_error("nf4-b64")
    assert bounds.gaussian_error("nf4-b64", 32) == bounds.gaussian_error("nf4-b32")


@pytest.mark.parametrize(
    ("format", "words"),
    [("int4-b64-mse", "absmax"), ("int4-b64-p99", "absmax"), ("nf4-row", "nf4-row"), ("int4-b1", "not 1")],
)
def test_what_is_not_predicted(format: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bounds.gaussian_error(format)

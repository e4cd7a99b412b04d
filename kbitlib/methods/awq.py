"""Activation-aware scaling: which input channels deserve a finer grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kbitlib.methods.calibration import InputStatistics, matrix_of
from kbitlib.quant import Format, quantize

STEPS = 20  # exponents 0, 1/20, ..., 19/20, as in the authors' code
SMALLEST = 1e-4  # of the largest mean magnitude: below it a channel counts as no smaller


@torch.no_grad()
def awq_scale(weights: Sequence[Tensor], statistics: InputStatistics, format: str | Format) -> Tensor:
    """The scale s (in,) by which to multiply the input channels of weights before rounding, for the least output error.

    weights: each (out, in), all of which read the inputs that ``statistics`` describe. s = mean|x|^a, divided by the
    root of its maximum times its minimum; of a grid of exponents a, the one with the least `output_error` of Q(W s)/s
    (AWQ, Lin et al. 2023, arXiv:2306.00978, equations 4 and 5); a = 0 is plain rounding. ValueError as `quantize`.
    """
    weights = [matrix_of(weight, statistics) for weight in weights]
    magnitude = statistics.mean_abs.float()
    magnitude = (magnitude / magnitude.max()).nan_to_num(1).clamp(min=SMALLEST)
    powers = [magnitude ** (step / STEPS) for step in range(STEPS)]
    candidates = [power / (power.max() * power.min()).sqrt() for power in powers]
    errors = [
        sum(output_error(w, quantize(w * s, format).dequantize() / s, statistics) for w in weights) for s in candidates
    ]
    return candidates[min(range(STEPS), key=errors.__getitem__)]


def output_error(weight: Tensor, rounded: Tensor, statistics: InputStatistics) -> float:
    """tr(D H D^T), D = weight - rounded (out, in): twice the squared change of a token's output, on average."""
    difference = (weight - rounded).float()
    return float(((difference @ statistics.hessian) * difference).sum())

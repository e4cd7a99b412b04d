"""Outlier splitting: a few input columns of a weight stay in 16 bits, and no longer stretch the scales of the rest."""

from dataclasses import replace
from math import ceil

from torch import Tensor

from kbitlib.methods.calibration import InputStatistics, matrix_of
from kbitlib.quant import Format, QuantizedTensor, quantize


def split_outliers(
    weight: Tensor, statistics: InputStatistics, format: str | Format, threshold: float = 6.0
) -> QuantizedTensor:
    """Quantize a weight (out, in), keeping the columns of inputs whose largest magnitude reaches a threshold.

    LLM.int8() (Dettmers et al. 2022, section 3.2), its columns chosen by calibration rather than anew for each input.
    ValueError as `quantize`, and for a kept weight beyond float16.
    """
    if not threshold >= 0:
        raise ValueError(f"the threshold of outliers is a number from 0 up, not {threshold}")
    return _split(matrix_of(weight, statistics), (statistics.max_abs >= threshold).nonzero()[:, 0], weight, format)


def proxy_outliers(
    weight: Tensor, previous_weight: Tensor, format: str | Format, share: float = 0.02
) -> QuantizedTensor:
    """Quantize a weight (out, in), keeping the share of columns that the layer before makes from its widest rows.

    previous_weight: (in, its own inputs), whose rows of largest standard deviation stand for the hidden units of most
    activation, so that no data is needed (Dettmers & Zettlemoyer 2022, the case for 4-bit precision, section 3). The
    number of columns is rounded up. ValueError as `split_outliers`, for shapes or a share (0 to 1) that do not fit.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of columns kept is 0 to 1, not {share}")
    matrix = matrix_of(weight, None)
    if len(previous_weight) != matrix.shape[1]:
        raise ValueError(f"{len(previous_weight)} hidden units of the layer before are not {matrix.shape[1]} inputs")
    deviations = previous_weight.detach().float().std(1, correction=0)
    return _split(matrix, deviations.topk(ceil(share * len(deviations))).indices.sort().values, weight, format)


def _split(matrix: Tensor, columns: Tensor, weight: Tensor, format: str | Format) -> QuantizedTensor:
    kept = matrix[:, columns].half()
    if not kept.isfinite().all():
        raise ValueError("a weight in an outlier column is beyond float16, in which outliers are kept")
    rest = matrix.index_fill(1, columns, 0).to(weight.dtype)
    return replace(quantize(rest, format), outlier_columns=columns.int(), outliers=kept)

"""Outlier columns: kept, counted, and out of the way of the rest."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kbitlib.methods.calibration import InputStatistics
from kbitlib.methods.outliers import proxy_outliers, split_outliers
from kbitlib.quant import Format, quantize


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_with(columns: list[int], count: int) -> InputStatistics:
    x = normal(50, count, seed=1).clamp(-4, 4)
    x[10, columns] = -6.0  # the threshold is reached, by one token and with either sign
    return InputStatistics.of(x)


FORMATS = [
    "int8-row",
    "int3-b7",
    "int4-b16-zp",
    "int2-b64-zpf",
    "nf4-dq",
    "nvfp4",
    "kmeans2",
    "log3",
    "ternary",
    "vq2c8",
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("columns", [[2, 30], []])
def test_columns_of_large_inputs_are_kept_and_the_rest_is_as_if_they_were_zero(name: str, columns: list[int]) -> None:
    weight = normal(8, 40)
    weight[:, columns] *= 50
    found = split_outliers(weight, inputs_with(columns, 40), name)
    rest = weight.index_fill(1, torch.tensor(columns, dtype=torch.long), 0)
    expected = quantize(rest, name).dequantize()
    expected[:, columns] = weight[:, columns].half().float()
    assert torch.equal(found.dequantize(), expected)
    assert found.arrays["outlier_columns"].tolist() == columns
    assert found.nbytes == quantize(rest, name).nbytes + (4 + 2 * 8) * len(columns)
    extra = 8 * (4 + 2 * 8) * len(columns) / weight.numel()
    assert found.bits_per_weight == pytest.approx(Format.parse(name).bits_per_weight(weight.shape) + extra, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_comes_back(dtype: torch.dtype) -> None:
    weight = normal(8, 40).to(dtype)
    found = split_outliers(weight, inputs_with([5], 40), "int4")
    assert found.dequantize().dtype is dtype
    assert torch.equal(found.dequantize()[:, 5], weight[:, 5].half().to(dtype))
    assert found.dequantize(torch.float32).dtype is torch.float32


def test_the_threshold_moves_what_is_kept() -> None:
    weight, statistics = normal(8, 40), inputs_with([5], 40)
    for threshold, count in ((6.01, 0), (6.0, 1), (0.0, 40)):
        assert len(split_outliers(weight, statistics, "int4", threshold).arrays["outlier_columns"]) == count


def test_the_proxy_keeps_the_columns_that_the_widest_rows_before_make() -> None:
    weight, previous = normal(8, 200), normal(200, 30, seed=1)
    previous[[150, 7, 33]] *= 9
    previous[99] += 100  # large but not wide
    found = proxy_outliers(weight, previous, "int3-b50", share=0.011)
    assert found.arrays["outlier_columns"].tolist() == [7, 33, 150]
    assert torch.equal(found.dequantize()[:, 33], weight[:, 33].half().float())
    assert len(proxy_outliers(weight, previous, "int3-b50").arrays["outlier_columns"]) == 4
    assert len(proxy_outliers(weight, previous, "int3-b50", share=0).arrays["outlier_columns"]) == 0


def test_what_does_not_fit_is_refused() -> None:
    weight = normal(8, 40)
    with pytest.raises(ValueError, match="30 hidden units of the layer before are not 40 inputs"):
        proxy_outliers(weight, normal(30, 5), "int4")
    with pytest.raises(ValueError, match=r"0 to 1, not 1\.5"):
        proxy_outliers(weight, normal(40, 5), "int4", share=1.5)
    with pytest.raises(ValueError, match="beyond float16"):
        split_outliers(weight * 1e6, inputs_with([5], 40), "int4-b64-fp32")
    with pytest.raises(ValueError, match=r"must be \(out, 30\)"):
        split_outliers(weight, inputs_with([5], 30), "int4")


def test_arrays_that_do_not_go_together_are_refused() -> None:
    found = split_outliers(normal(8, 40), inputs_with([5], 40), "int4")
    kept = found.arrays["outliers"]
    for wrong in ({"outlier_columns": None}, {"outliers": None}, {"outliers": kept[:4]}, {"outliers": kept.float()}):
        with pytest.raises(ValueError, match=r"of shape .* has arrays"):
            replace(found, **wrong)

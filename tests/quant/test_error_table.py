"""The error of every format on Gaussian weights against a table of it: a quantizer that changes is noticed.

``make_error_table.py`` writes the table.
"""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kbitlib.quant import Format, quantize
from kbitlib.quant.format import every_format

TABLE = Path(__file__).with_name("error_table.csv")
MATRICES = 16
BLOCKS = (32, 64, 128)
SIGMAS = 5
FRESH = 1000  # the first seed of the test; the table has those from 0 on


def errors(format: str, first: int, count: int) -> list[float]:
    """Relative squared errors of a format on independent Gaussian 64 x 512 matrices, one a seed from the first on."""
    found = []
    for seed in range(first, first + count):
        x = torch.randn(64, 512, generator=torch.Generator().manual_seed(seed))
        wrong = (quantize(x, format).dequantize() - x).double().square().sum()
        found.append(float(wrong / x.double().square().sum()))
    return found


def formats() -> list[str]:
    """Every data type at every k and block (vectors where k is whole, which is quick); the parts at k = 4."""
    named = [format for format in every_format() if format.kind != "vq" or format.k == int(format.k)]
    quick = {format.name: format for format in named if format.kind != "vq" or format.code_bits <= 8}
    wanted = [name if format.kind == "fixed" else f"{name}-b{n}" for name, format in quick.items() for n in BLOCKS]
    zeros = [f"int{k}-b{n}-{zero}" for k in range(2, 9) for n in BLOCKS for zero in ("zp", "zpf")]
    scales = [f"{e}-b{n}-{s}" for e in ("int4", "nf4", "e2m1") for n in BLOCKS for s in ("fp32", "bf16", "e4m3", "dq")]
    powers = [f"{element}-b{n}-e8m0" for element in ("int4", "nf4", "e2m1", "e2m3", "e4m3") for n in BLOCKS]
    ranges = [f"{e}4-b{n}-{r}" for e in ("int", "nf", "pot") for n in BLOCKS for r in ("mse", "p99.9")]
    ranges += [f"int4-b{n}-{rest}" for n in BLOCKS for rest in ("zp-mse", "zpf-mse")]
    ranges += [f"{name}-b{n}-mse" for name in ("int4n", "int4s", "e2m1", "ternary", "e8c8") for n in BLOCKS]
    whole = [f"{name}-{block}" for name in ("int4", "nf4", "kmeans4", "vq2c8") for block in ("row", "tensor")]
    every = [*wanted, *zeros, *scales, *powers, *ranges, *whole, "nvfp4"]
    return list(dict.fromkeys(str(Format.parse(text)) for text in every))


def rows() -> dict[str, tuple[float, float]]:
    with TABLE.open(encoding="utf-8") as file:
        return {row["format"]: (float(row["mean"]), float(row["spread"])) for row in csv.DictReader(file)}


def test_the_table_has_every_format() -> None:
    assert list(rows()) == formats()


def bound(format: str, spread: float) -> float:
    """How far the mean of fresh errors may be from the table's: both vary, independently."""
    return SIGMAS * spread * math.sqrt(1 / MATRICES + 1 / fresh(format))


def fresh(format: str) -> int:
    """Matrices in the test: fewer for vectors, which take longer."""
    return 1 if Format.parse(format).weights_per_code > 1 else 3


@pytest.mark.parametrize("format", formats())
def test_errors_are_those_of_the_table(format: str) -> None:
    mean, spread = rows()[format]
    assert abs(np.mean(errors(format, FRESH, fresh(format))) - mean) < bound(format, spread)


def test_the_bounds_are_narrow() -> None:
    """Half of the formats would show a squared error that changes by 3 percent; all with small blocks one by 12.

    Where the largest of a whole tensor's weights decides, matrices differ more.
    """
    widths = {name: bound(name, spread) / mean for name, (mean, spread) in rows().items()}
    assert np.median(list(widths.values())) < 0.03
    blocks = [width for name, width in widths.items() if "-b" in name and not name.startswith("quantile")]
    assert max(blocks) < 0.12

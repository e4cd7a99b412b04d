"""GPTQ against a direct solve, and what it promises."""

import warnings

import pytest
import torch
from torch import Tensor

from kbitlib.methods import gptq as module
from kbitlib.methods.calibration import InputStatistics
from kbitlib.methods.gptq import gptq
from kbitlib.quant import Format, QuantizedTensor, quantize
from kbitlib.quant.format import every_format
from kbitlib.quant.rounding import Grid, decode

DAMPING = 0.01


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(inputs: int, seed: int = 0) -> InputStatistics:
    """Inputs that are mixtures of few strong directions, as those of language models are."""
    mixture = normal(inputs, inputs, seed=seed) * torch.logspace(0, -1.5, inputs)[:, None]
    return InputStatistics.of(normal(8 * inputs, inputs, seed=seed + 1) @ mixture)


def weighted_error(packed: QuantizedTensor, weight: Tensor, statistics: InputStatistics) -> float:
    difference = (packed.dequantize() - weight).double()
    return float(((difference @ statistics.hessian.double()) * difference).sum())


def direct_solve(
    weight: Tensor, statistics: InputStatistics, format: Format, *, order: list[int], static: bool
) -> Tensor:
    """(out, in) what GPTQ should give: each column goes to the nearest level of its block, then all columns still to
    come are set anew, from H alone, to what makes up best for the errors of all that are done."""
    hessian = statistics.hessian.double()
    hessian = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    original, current = weight.double(), weight.double().clone()
    columns = weight.shape[1]
    size = format.block if format.block > 0 else columns
    grids: dict[int, Grid] = {}
    for done, column in enumerate(order):
        block = column // size
        if block not in grids:
            source = weight if static else current.float()
            own = slice(block * size, min(block * size + size, columns))
            (grids[block],) = quantize(source[:, own], format).grids()
        book = grids[block].book
        codes = torch.arange(len(book.table) if book else 2 ** int(format.k), dtype=torch.uint8)
        levels = decode(codes.expand(len(weight), 1, -1), grids[block])[:, 0].double()
        nearest = (current[:, column, None] - levels).abs().argmin(1, keepdim=True)
        current[:, column] = levels.gather(1, nearest)[:, 0]
        fixed, rest = order[: done + 1], order[done + 1 :]
        owed = (current - original)[:, fixed] @ hessian[fixed][:, rest]
        if rest:
            current[:, rest] = original[:, rest] - torch.linalg.solve(hessian[rest][:, rest], owed.T).T
    return current.float()


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        *[(name, 20) for name in ("int4-b64", "int3-b7", "int2-b5-zp", "int4-b7-zpf", "nf3-b6-bf16", "e2m1-b8-e8m0")],
        *[(name, 20) for name in ("pot3-b20", "dynamic4-b7", "int3n-b9-fp32", "int4-b7-mse", "int3-b10-p80")],
        *[(name, 20) for name in ("int3-row", "int3-tensor", "nf4-b1", "bnbfp4-b7", "binary-b7-fp32")],
        *[(name, 300) for name in ("int3-b7", "nf4-b100", "int4-b150-zp", "int4-b256", "int2-row-zpf")],
    ],
)
def test_equal_to_a_direct_solve(name: str, columns: int) -> None:
    """300 columns: more than are lazy at once, in blocks that fit there, that do not, and that are larger."""
    format, statistics, weight = Format.parse(name), correlated(columns), normal(4, columns, seed=5)
    expected = direct_solve(weight, statistics, format, order=list(range(columns)), static=format.block < 0)
    torch.testing.assert_close(gptq(weight, statistics, format).dequantize(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["int3-b7", "nf4-b64", "int4-b10-zp"])
@pytest.mark.parametrize("act_order", [False, True])
def test_static_groups_and_order_equal_a_direct_solve(name: str, act_order: bool) -> None:
    statistics, weight = correlated(150), normal(4, 150, seed=5)
    order = list(range(150))
    if act_order:
        order.sort(key=lambda column: -float(statistics.hessian[column, column]))
    found = gptq(weight, statistics, name, act_order=act_order, static_groups=not act_order)
    expected = direct_solve(weight, statistics, Format.parse(name), order=order, static=True)
    torch.testing.assert_close(found.dequantize(), expected, rtol=1e-6, atol=0)
    scales = quantize(weight, name).scales
    assert scales is not None
    assert found.scales is not None
    assert torch.equal(found.scales, scales)


SCALAR = [str(format) for format in every_format() if format.element not in ("vq", "e8")]
SOME = ["int3-b7-dq", "int4-b7-e4m3", "nf4-b7-dq", "int4s-b7", "int3-b7-zp-mse", "kmeans3-row", "quantile4-tensor"]


@pytest.mark.parametrize("name", SCALAR + SOME)
def test_identity_gives_rounding_to_nearest(name: str) -> None:
    """Where inputs are uncorrelated no column can make up for another: each array is that of `quantize`."""
    weight, statistics = normal(3, 70), InputStatistics(2 * torch.eye(70), torch.ones(70), torch.ones(70), 1)
    expected = quantize(weight, name).arrays
    for act_order in (False, True):
        found = gptq(weight, statistics, name, act_order=act_order).arrays
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[array].view(torch.uint8), expected[array].view(torch.uint8)) for array in found)


FORMATS = ["int{k}", "int{k}-b32-zp", "int{k}-b7-zpf", "nf{k}", "fp{k}-b32-e8m0", "fp{k}-b16-e4m3", "pot{k}", "log{k}"]
FORMATS += ["kmeans{k}", "quantile{k}", "dynamic{k}", "int{k}-row", "int{k}-tensor", "int{k}-mse", "nf{k}-dq"]


@pytest.mark.parametrize("name", [name.format(k=k) for name in FORMATS for k in (2, 3, 4)] + ["ternary", "binary"])
def test_no_worse_than_rounding_on_correlated_inputs(name: str) -> None:
    for seed in (0, 1):
        statistics, weight = correlated(96, seed), normal(16, 96, seed=seed + 7)
        rounded = weighted_error(quantize(weight, name), weight, statistics)
        for settings in ({}, {"static_groups": True}, {"act_order": True}):
            assert weighted_error(gptq(weight, statistics, name, **settings), weight, statistics) < rounded


def test_learned_levels_and_the_second_scale_are_those_of_the_original() -> None:
    statistics, weight = correlated(96), normal(16, 96)
    for name, array in (("kmeans3-b7", "codebook"), ("quantile4", "codebook"), ("nvfp4", "outer_scales")):
        assert torch.equal(gptq(weight, statistics, name).arrays[array], quantize(weight, name).arrays[array])


def test_scales_that_outgrow_the_second_level_stay_at_the_largest_of_their_type() -> None:
    """With this seed the errors of the columns before make the widest block 9 % wider than any was."""
    statistics, weight = correlated(96, 15), normal(2, 96, seed=15)
    found = gptq(weight, statistics, "nvfp4").arrays["scales"].float()
    assert found.max() == 448
    assert weighted_error(gptq(weight, statistics, "nvfp4"), weight, statistics) < weighted_error(
        quantize(weight, "nvfp4"), weight, statistics
    )


def test_dead_inputs_get_weight_zero_and_stretch_no_scale() -> None:
    x, weight = normal(400, 40), normal(8, 40, seed=1)
    x[:, [3, 17]] = 0
    weight[:, [3, 17]] = 100
    found = gptq(weight, InputStatistics.of(x), "int4-b40").dequantize()
    assert not found[:, [3, 17]].any()
    assert found.abs().max() < 10


def test_damping_recovers_from_a_hessian_without_inverse() -> None:
    """Fewer tokens than inputs, and a damping far below what float32 has rounded away: H has no Cholesky factor."""
    weight, statistics = normal(8, 60), InputStatistics.of(normal(7, 60, seed=1))
    with pytest.warns(UserWarning, match=r"damping 1e-13; 1e-\d+ was used"):
        found = gptq(weight, statistics, "int3", damping=1e-13)
    assert weighted_error(found, weight, statistics) < weighted_error(quantize(weight, "int3"), weight, statistics)


def test_damping_is_raised_tenfold_and_named() -> None:
    """The eigenvalues are 2.05 and -0.05: with a mean diagonal of one, 0.01 is too little and 0.1 enough."""
    hessian = torch.tensor([[1, 1.05], [1.05, 1]])
    statistics = InputStatistics(hessian, torch.ones(2), torch.ones(2), 1)
    with pytest.warns(UserWarning, match=r"damping 0.01; 0.1 was used"):
        found = gptq(normal(3, 2), statistics, "int4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = gptq(normal(3, 2), statistics, "int4", damping=0.1)
    assert torch.equal(found.dequantize(), expected.dequantize())


def test_arguments_stay_as_they_are() -> None:
    statistics, weight = InputStatistics.of(normal(50, 20)), normal(4, 20)
    statistics.hessian[3] = statistics.hessian[:, 3] = 0
    hessian, before = statistics.hessian.clone(), weight.clone()
    gptq(weight, statistics, "int4")
    assert torch.equal(statistics.hessian, hessian)
    assert torch.equal(weight, before)


def test_a_transposed_half_precision_weight() -> None:
    statistics, weight = correlated(40), normal(40, 8).half()
    found = gptq(weight.T, statistics, "int4-b16")
    assert found.dequantize().dtype is torch.float16
    assert torch.equal(found.codes, gptq(weight.T.contiguous().float(), statistics, "int4-b16").codes)


@pytest.mark.parametrize(
    ("name", "damping", "message"),
    [
        ("vq2c8", DAMPING, "gptq takes scalar formats"),
        ("e8c8", DAMPING, "gptq takes scalar formats"),
        ("int4", 0.0, "damping above 0, not 0.0"),
        ("int9", DAMPING, "unknown"),
    ],
)
def test_what_is_refused(name: str, damping: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gptq(normal(4, 16), correlated(16), name, damping=damping)


def test_values_that_are_not_finite_are_refused() -> None:
    weight, statistics = normal(4, 16), correlated(16)
    with pytest.raises(ValueError, match="finite floating-point"):
        gptq(weight.index_fill(1, torch.tensor([2]), torch.nan), statistics, "int4")
    statistics.hessian[0, 0] = torch.inf
    with pytest.raises(ValueError, match="inputs that the statistics are of hold NaN or infinity"):
        gptq(weight, statistics, "int4")


def test_laziness_is_only_a_matter_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, weight = correlated(100), normal(8, 100)
    expected = gptq(weight, statistics, "nf4-b9").codes
    for lazy in (1, 16, 40):
        monkeypatch.setattr(module, "LAZY", lazy)
        assert torch.equal(gptq(weight, statistics, "nf4-b9").codes, expected)

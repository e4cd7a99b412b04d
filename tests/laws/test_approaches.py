"""Approaches 1 and 2 on surfaces whose optimal exponent is known, and on the points of Hoffmann et al. 2022."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import fit
from kbitlib.laws.approaches import envelope, isoflop

CHINCHILLA_CSV = Path(__file__).parents[3] / "shared" / "data" / "chinchilla.csv"
E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
EXPONENT = BETA / (ALPHA + BETA)  # of params in the optimal allocation of compute
FACTOR = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * 6**-EXPONENT
BUDGETS = np.geomspace(6e18, 3e21, 9)
PUBLISHED_BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)


def loss(table: pd.DataFrame, noise: float, random_state: int) -> pd.DataFrame:
    random = np.random.default_rng(random_state)
    mean = E + A * table["params"] ** -ALPHA + B * table["tokens"] ** -BETA
    return table.assign(loss=mean * np.exp(noise * random.standard_normal(len(table))))


def isoflop_runs(noise: float = 0.0, random_state: int = 0) -> pd.DataFrame:
    """Nine sizes around the best one at each of nine budgets."""
    flops = np.repeat(BUDGETS, 9)
    params = FACTOR * flops**EXPONENT * np.tile(np.exp(np.linspace(-1, 1, 9)), 9)
    return loss(pd.DataFrame({"params": params, "tokens": flops / (6 * params), "flops": flops}), noise, random_state)


def training_runs(noise: float = 0.0, random_state: int = 0, sizes: int = 16) -> pd.DataFrame:
    """Sizes trained for twelve lengths from 2 to 200 tokens a parameter."""
    params = np.repeat(np.geomspace(5e7, 2e10, sizes), 12)
    tokens = params * np.tile(np.geomspace(2, 200, 12), sizes)
    return loss(pd.DataFrame({"params": params, "tokens": tokens, "flops": 6 * params * tokens}), noise, random_state)


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    if not CHINCHILLA_CSV.exists():
        pytest.skip(f"the points of Hoffmann et al. 2022, figure 4, are not there: {CHINCHILLA_CSV}")
    return pd.read_csv(CHINCHILLA_CSV)


def test_parabolas_find_the_exponents_of_an_exact_surface() -> None:
    found = isoflop(isoflop_runs(), BUDGETS)
    assert found.left_out == []
    assert found.exponents["exponent"].to_list() == pytest.approx([EXPONENT, 1 - EXPONENT], rel=1e-6)
    assert found.points["params"].to_numpy() == pytest.approx(FACTOR * BUDGETS**EXPONENT, rel=0.02)
    assert found.points["tokens"].to_numpy() == pytest.approx(BUDGETS / (6 * found.points["params"].to_numpy()))


def test_the_envelope_finds_the_exponents_of_an_exact_surface() -> None:
    found = envelope(training_runs())
    assert found.exponents["exponent"].to_list() == pytest.approx([EXPONENT, 1 - EXPONENT], abs=0.01)
    assert found.points["params"].nunique() == 14  # neither the smallest nor the largest
    best = FACTOR * found.points["flops"] ** EXPONENT
    assert np.log(found.points["params"] / best).abs().max() < 0.3  # half a step of the sizes is .2
    assert "budgets, where a size beyond those tried may be best" in found.left_out[0]


def test_intervals_hold_the_truth() -> None:
    held = {"envelope": 0, "isoflop": 0}
    for state in range(16):
        for name, found in (
            ("envelope", envelope(training_runs(0.003, state))),
            ("isoflop", isoflop(isoflop_runs(0.003, state), BUDGETS)),
        ):
            row = found.exponents.loc["params"]
            held[name] += row["low"] < EXPONENT < row["high"]
    assert min(held.values()) >= 12  # at 95 %, fewer happen once in 1,000 runs


def test_several_seeds_of_a_run_count_by_their_mean() -> None:
    one = training_runs()
    two = pd.concat([one.assign(loss=one["loss"] * 1.01), one.assign(loss=one["loss"] / 1.01)], ignore_index=True)
    assert envelope(two).exponents.to_numpy() == pytest.approx(envelope(one).exponents.to_numpy())


def test_the_published_points_agree_by_three_approaches(published: pd.DataFrame) -> None:
    """The points are read from a figure: few runs a budget, so that the parabolas' interval is wide."""
    first, second = envelope(published), isoflop(published, PUBLISHED_BUDGETS)
    third = fit(published[published["in_epoch_fit"] == 1]).params
    exponent = third["beta"] / (third["alpha"] + third["beta"])
    for found in (first, second):
        row = found.exponents.loc["params"]
        assert row["low"] < exponent < row["high"]
    assert second.left_out == ["the budget of 1e+20 FLOPs: the best size lies beyond those tried"]
    assert first.exponents.loc["params", "exponent"] == pytest.approx(0.49, abs=0.03)  # Hoffmann et al.: .50
    assert second.exponents.loc["params", "se"] > 0.04


def test_what_finds_no_best_size_says_so() -> None:
    runs = isoflop_runs()
    with pytest.raises(ValueError, match=r"0 budgets have a best size; three are needed .*: 0 sizes, and a parabola"):
        isoflop(runs, [1e10, 1e11, 1e12])
    small = runs[runs["params"] < 0.9 * FACTOR * runs["flops"] ** EXPONENT]
    with pytest.raises(ValueError, match=r"6e\+18 FLOPs: the best size lies beyond those tried"):
        isoflop(small, BUDGETS)
    with pytest.raises(ValueError, match=r"6e\+18 FLOPs: the parabola opens downwards"):
        isoflop(runs.assign(loss=10 - runs["loss"]), BUDGETS)
    with pytest.raises(ValueError, match="4 sizes have runs of several lengths; at least five are needed"):
        envelope(training_runs(sizes=4))
    flat = training_runs().assign(loss=lambda t: t["params"] ** -0.1)
    with pytest.raises(ValueError, match="0 sizes are best inside those tried; three are needed"):
        envelope(flat)
    with pytest.raises(ValueError, match="column 'flops' is missing"):
        envelope(runs.drop(columns="flops"))
    with pytest.raises(ValueError, match=r"column 'loss' holds -1.0 in row 0"):
        isoflop(runs.assign(loss=-1.0), BUDGETS)

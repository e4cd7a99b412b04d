"""The tutorials' three ways on one problem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import fit
from kbitlib.laws.three_ways import three_ways

Simulate = Callable[..., pd.DataFrame]
CHINCHILLA_CSV = Path(__file__).parents[3] / "shared" / "data" / "chinchilla.csv"
LEAST_SQUARES, DESCENT, BAYES, OURS = (
    "least squares (curve_fit)",
    "gradient descent",
    "Bayesian optimisation",
    "kbitlib",
)


def test_all_solve_one_problem_and_stop_at_different_distances() -> None:
    if not CHINCHILLA_CSV.exists():
        pytest.skip(f"the points of Hoffmann et al. 2022, figure 4, are not there: {CHINCHILLA_CSV}")
    table = pd.read_csv(CHINCHILLA_CSV).query("flops < 1e21 and in_epoch_fit == 1")
    found = three_ways(table, trials=24)
    assert list(found.index) == [LEAST_SQUARES, DESCENT, BAYES, OURS]
    assert found.loc[OURS, "objective"] == pytest.approx(0.062414, abs=5e-7)
    assert found.loc[OURS, ["E", "alpha", "beta"]].to_list() == pytest.approx([1.9051, 0.3511, 0.4587], abs=1e-4)
    assert found.loc[LEAST_SQUARES, "excess"] < 1e-6
    assert 0.01 < found.loc[DESCENT, "excess"] < found.loc[BAYES, "excess"]
    assert found["excess"].min() == 0
    assert found.loc[[DESCENT, BAYES], "evaluations"].to_list() == [2001, 24]


def test_parameters_give_the_objective_that_is_reported(family: Simulate) -> None:
    table = family().query("k == 4").rename(columns={"params": "N"})
    found = three_ways(table, "power", trials=21, columns={"params": "N"})
    size = table["N"].to_numpy() / np.exp(np.log(table["N"]).mean())
    for _, line in found.iterrows():
        predicted = line["A"] * size ** -line["alpha"]
        assert ((table["loss"] - predicted) ** 2).sum() == pytest.approx(line["objective"], rel=1e-6)
    exponent = fit(table, "power", loss="squared", columns={"params": "N"}).params["alpha"]
    assert found.loc[OURS, "alpha"] == pytest.approx(exponent, rel=1e-6)


def test_more_steps_go_further_and_a_seed_repeats(family: Simulate) -> None:
    table = family().query("k == 4")
    short, long = (three_ways(table, "power", steps=steps, trials=22) for steps in (10, 200))
    assert long.loc[DESCENT, "objective"] < short.loc[DESCENT, "objective"]
    assert long.loc[BAYES, "objective"] == short.loc[BAYES, "objective"]


def test_bad_input_is_refused_as_by_fit(family: Simulate) -> None:
    with pytest.raises(ValueError, match="law 'cubic' is unknown"):
        three_ways(family(), "cubic")
    with pytest.raises(ValueError, match="steps is 10 and trials is 0; 1 or more are allowed"):
        three_ways(family(), "power", steps=10, trials=0)

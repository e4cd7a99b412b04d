"""Diagnostics of a design, in numbers and in words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.outliers_influence import variance_inflation_factor

from kbitlib.laws import diagnose
from kbitlib.laws.diagnostics import condition_number, correlation, determined, variance_inflation

RANDOM = np.random.default_rng(0)


def logs(rows: int = 20) -> pd.DataFrame:
    params, tokens = RANDOM.uniform(10, 20, rows), RANDOM.uniform(15, 25, rows)
    return pd.DataFrame({"log alpha": 1.0, "beta": params, "gamma": tokens, "delta": np.log(6) + params + tokens})


def test_collinear_compute_is_named() -> None:
    found = diagnose(logs())
    assert found.rank == 3
    assert not found.full_rank
    assert found.condition_number == np.inf
    assert found.identified == ["log alpha + 1.792 delta", "beta + delta", "gamma + delta"]
    assert found.undetermined == ["log alpha + 0.5581 beta + 0.5581 gamma - 0.5581 delta"]
    assert np.isnan(found.vif["log alpha"])
    assert np.isinf(found.vif[["beta", "gamma", "delta"]]).all()


def test_nothing_predicted_moves_along_an_undetermined_direction() -> None:
    design = logs()
    here = np.array([0.3, -0.1, 0.2, 0.05])
    there = here + 7 * np.array([np.log(6), 1, 1, -1])  # the direction in words, times log 6
    assert design.to_numpy() @ there == pytest.approx(design.to_numpy() @ here)


def test_a_full_design_has_nothing_undetermined() -> None:
    found = diagnose(logs().drop(columns="delta"))
    assert found.full_rank
    assert found.identified == ["log alpha", "beta", "gamma"]
    assert found.undetermined == []


def test_condition_number_is_scaled() -> None:
    matrix = RANDOM.standard_normal((30, 3))
    assert condition_number(matrix * [1, 1e6, 1e-6]) == pytest.approx(condition_number(matrix))
    assert condition_number(np.eye(3)) == pytest.approx(1.0)
    assert condition_number(np.ones((2, 3))) == np.inf


def test_variance_inflation_is_statsmodels() -> None:
    mixed = RANDOM.standard_normal((40, 3)) @ [[1, 0.9, 0], [0, 0.3, 0.2], [0, 0, 1]]
    design = pd.DataFrame(mixed, columns=list("abc"))
    with_constant = np.column_stack([np.ones(40), design])
    expected = [variance_inflation_factor(with_constant, i) for i in (1, 2, 3)]
    assert variance_inflation(design).to_numpy() == pytest.approx(expected)


def test_which_columns_are_determined() -> None:
    a, b = RANDOM.standard_normal((2, 10))
    assert determined(np.column_stack([a, b, 2 * b])) == [True, False, False]
    assert determined(np.column_stack([a, np.zeros(10)])) == [True, False]


def test_correlation_of_estimates() -> None:
    covariance = pd.DataFrame([[4.0, 3.0], [3.0, 9.0]], index=["a", "b"], columns=["a", "b"])
    assert correlation(covariance).loc["a", "b"] == pytest.approx(0.5)

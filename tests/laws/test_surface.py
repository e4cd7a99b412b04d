"""A form on a table: values by the formula, derivatives by differences."""

from __future__ import annotations

import numpy as np
import pytest

from kbitlib.laws.forms import FORMS
from kbitlib.laws.surface import Surface

RANDOM = np.random.default_rng(0)
COLUMNS = {
    "params": np.exp(RANDOM.uniform(10, 20, 30)),
    "tokens": np.exp(RANDOM.uniform(15, 25, 30)),
    "flops": np.exp(RANDOM.uniform(40, 50, 30)),
    "total_bits": np.exp(RANDOM.uniform(12, 22, 30)),
    "k": np.tile([2.0, 3.0, 16.0], 10),
}


def bound(name: str) -> Surface:
    return Surface(FORMS[name], {column: COLUMNS[column] for column in FORMS[name].columns})


def test_values_are_those_of_the_formula() -> None:
    theta = np.array([[1.7, np.log(400), np.log(900), 0.3, 0.4]])
    expected = 1.7 + 400 * COLUMNS["params"] ** -0.3 + 900 * COLUMNS["tokens"] ** -0.4
    assert np.exp(bound("chinchilla").log_mean(theta)[0]) == pytest.approx(expected)
    theta = np.array([[1.7, np.log(400), 0.3, np.log(0.1), np.log(0.6)]])
    f = np.tile([0.1, 0.6, 1.0], 10)
    expected = 1.7 + 400 * (COLUMNS["params"] * f) ** -0.3
    assert np.exp(bound("effective-parameters").log_mean(theta)[0]) == pytest.approx(expected)


@pytest.mark.parametrize("name", FORMS)
def test_derivatives_are_exact(name: str) -> None:
    surface = bound(name)
    theta = surface.starts()[:3] + 0.1
    _, jacobian = surface.log_mean_and_jacobian(theta)
    assert jacobian.shape == (len(theta), len(surface.names), 30)
    for j in range(len(surface.names)):
        step = 1e-6 * np.eye(len(surface.names))[j]
        slope = (surface.log_mean(theta + step) - surface.log_mean(theta - step)) / 2e-6
        assert jacobian[:, j] == pytest.approx(slope, abs=1e-6)


def test_an_offset_of_zero_has_a_finite_derivative() -> None:
    surface = bound("chinchilla")
    theta = np.array([[0.0, np.log(400), np.log(900), 0.3, 0.4]])
    log_mean, jacobian = surface.log_mean_and_jacobian(theta)
    assert jacobian[0, 0] == pytest.approx(np.exp(-log_mean[0]))
    assert np.isfinite(jacobian).all()

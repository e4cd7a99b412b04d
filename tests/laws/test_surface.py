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
    "activation_bits": RANDOM.integers(2, 9, 30).astype(np.float64),
    "kv_bits": RANDOM.integers(2, 9, 30).astype(np.float64),
    "k_post": RANDOM.integers(2, 9, 30).astype(np.float64),
    "gaussian_mse": np.exp(RANDOM.uniform(-6, -0.5, 30)),
    "block": 2.0 ** RANDOM.integers(4, 9, 30),
    "bytes": np.exp(RANDOM.uniform(12, 22, 30)),
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


def test_levels_are_found_by_value_wherever_they_stand() -> None:
    columns = {name: COLUMNS[name] for name in FORMS["total-bits"].columns}
    straight = Surface(FORMS["total-bits"], columns)
    turned = Surface(FORMS["total-bits"], columns, np.array([16.0, 2.0, 3.0]))
    assert turned.names == ["A[16]", "A[2]", "A[3]", "alpha[16]", "alpha[2]", "alpha[3]"]
    theta = np.array([[1.0, 2.0, 3.0, 0.1, 0.2, 0.3]])
    assert turned.log_mean(theta[:, [2, 0, 1, 5, 3, 4]]) == pytest.approx(straight.log_mean(theta))


@pytest.mark.parametrize("names", [("2", "3", "fp32"), ("nf2", "nf3", "full")])
def test_labels_stand_for_k(names: tuple[str, ...]) -> None:
    form = FORMS["effective-parameters"]
    bits = Surface(form, {"params": COLUMNS["params"], "k": COLUMNS["k"]})
    labels = Surface(form, {"params": COLUMNS["params"], "k": np.tile(names, 10)})
    assert labels.names == ["E", "A", "alpha", f"f[{names[0]}]", f"f[{names[1]}]"]
    theta = np.array([[1.7, np.log(400), 0.3, np.log(0.1), np.log(0.6)]])
    assert labels.log_mean(theta) == pytest.approx(bits.log_mean(theta))


@pytest.mark.parametrize("present", [("k",), ("activation_bits", "k_post"), ("kv_bits",)])
def test_derivatives_of_a_law_with_fewer_columns_are_exact(present: tuple[str, ...]) -> None:
    form = FORMS["kumar"].for_columns(present)
    assert form.columns == ("params", "tokens", *present)
    surface = Surface(form, {column: COLUMNS[column] for column in form.columns})
    theta = surface.starts()[:2] + 0.1
    jacobian = surface.log_mean_and_jacobian(theta)[1]
    for j, step in enumerate(1e-6 * np.eye(len(surface.names))):
        slope = (surface.log_mean(theta + step) - surface.log_mean(theta - step)) / 2e-6
        assert jacobian[:, j] == pytest.approx(slope, abs=1e-6)

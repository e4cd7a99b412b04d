"""Sums over rows: the quick way for linear terms gives what the derivatives written out give."""

from __future__ import annotations

import numpy as np
import pytest

from kbitlib.laws.forms import FORMS
from kbitlib.laws.slopes import DenseSlopes, TermSlopes
from kbitlib.laws.surface import Surface

RANDOM = np.random.default_rng(0)
COLUMNS = {
    "params": np.exp(RANDOM.uniform(10, 20, 30)),
    "tokens": np.exp(RANDOM.uniform(15, 25, 30)),
    "total_bits": np.exp(RANDOM.uniform(12, 22, 30)),
    "k": np.tile([2.0, 3.0, 4.0, 8.0, 16.0], 6),
}


def bound(law: str) -> Surface:
    return Surface(FORMS[law], {name: COLUMNS[name] for name in FORMS[law].columns})


@pytest.mark.parametrize("law", ["power", "chinchilla", "total-bits"])
def test_sums_of_linear_terms(law: str) -> None:
    surface = bound(law)
    theta = RANDOM.uniform(0.1, 0.4, (3, len(surface.names)))
    theta[0, surface.offset] = 0.0
    slopes = surface.slopes(theta, *surface.shares(theta))
    assert isinstance(slopes, TermSlopes)
    dense = DenseSlopes(surface.log_mean_and_jacobian(theta)[1])
    weights = RANDOM.uniform(0, 2, (3, 30))
    assert slopes.dot(weights) == pytest.approx(dense.dot(weights), rel=1e-10)
    assert slopes.gram(weights) == pytest.approx(dense.gram(weights), rel=1e-10)


@pytest.mark.parametrize("law", ["chinchilla", "total-bits", "effective-parameters", "degradation"])
def test_derivatives_are_those_of_finite_differences(law: str) -> None:
    surface = bound(law)
    theta = RANDOM.uniform(0.1, 0.3, len(surface.names))
    _, jacobian = surface.log_mean_and_jacobian(theta)
    for j in range(len(theta)):
        step = 1e-6 * np.eye(len(theta))[j]
        slope = (surface.log_mean(theta + step) - surface.log_mean(theta - step)) / 2e-6
        assert jacobian[j] == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_a_law_that_bends_has_its_derivatives_written_out() -> None:
    surface = bound("effective-parameters")
    theta = RANDOM.uniform(0.1, 0.4, (3, len(surface.names)))
    assert isinstance(surface.slopes(theta, *surface.shares(theta)), DenseSlopes)

"""Profiles: t intervals of a plane, the F level at their ends, and no end where the rows give none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kbitlib.laws.forms import FORMS
from kbitlib.laws.profile import flat_directions, inverse, least_squares, linearised, profile
from kbitlib.laws.surface import Surface

TRUTH = np.array([1.8, np.log(480), np.log(2100), 0.35, 0.37])


def surface(rows: int = 60, spread: float | None = None) -> tuple[Surface, np.ndarray]:
    random = np.random.default_rng(3)
    params, tokens = np.exp(random.uniform(17, 23, rows)), np.exp(random.uniform(20, 26, rows))
    if spread is not None:
        tokens = 20 * params * np.exp(spread * random.standard_normal(rows))
    made = Surface(FORMS["chinchilla"], {"params": params, "tokens": tokens})
    return made, np.exp(made.log_mean(TRUTH) + 0.01 * random.standard_normal(rows))


def free(rows: int) -> np.ndarray:
    return np.zeros((rows, 5), dtype=bool)


def test_of_a_linear_law_it_is_the_t_interval() -> None:
    random = np.random.default_rng(0)
    made = Surface(FORMS["power"], {"params": np.exp(random.uniform(10, 20, 25))})
    response = np.exp(made.log_mean(np.array([2.0, 0.1])) + 0.05 * random.standard_normal(25))
    theta, value = least_squares(made, response, True, np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))
    design = linearised(made, response, True, theta)[1][0].T
    expected = np.linalg.lstsq(design, np.log(response))
    spread = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * value[0] / 23)
    assert (theta[0] - expected[0]) / spread == pytest.approx(0, abs=1e-5)
    assert value[0] == pytest.approx(expected[1][0])
    width = stats.t.ppf(0.95, 23) * spread
    ends = profile(made, response, True, theta[0], 0.9).ends
    assert ends == pytest.approx(np.column_stack([theta[0] - width, theta[0] + width]), rel=1e-3)


@pytest.mark.parametrize("on_logs", [True, False])
def test_at_its_ends_the_fit_is_worse_by_f(on_logs: bool) -> None:
    made, response = surface()
    theta, best = least_squares(made, response, on_logs, TRUTH[None], free(1))
    found = profile(made, response, on_logs, theta[0], 0.95)
    limit = best[0] * (1 + stats.f.ppf(0.95, 1, 55) / 55)
    assert (found.ends[:, 0] < theta[0]).all()
    assert (theta[0] < found.ends[:, 1]).all()
    for j in range(5):
        for side in (0, 1):
            held = np.arange(5)[None] == j
            start = found.points[j, side][None]
            assert start[0, j] == found.ends[j, side]
            _, value = least_squares(made, response, on_logs, start, held)
            assert value[0] - best[0] == pytest.approx(limit - best[0], rel=5e-3)


def test_many_tables_of_one_design_are_fitted_at_once() -> None:
    made, response = surface()
    tables = response * np.exp(0.005 * np.random.default_rng(1).standard_normal((4, 60)))
    together, values = least_squares(made, tables, True, np.tile(TRUTH, (4, 1)), free(4))
    for table, theta, value in zip(tables, together, values, strict=True):
        alone = least_squares(made, table, True, TRUTH[None], free(1))
        assert theta == pytest.approx(alone[0][0], rel=1e-9)
        assert value == pytest.approx(alone[1][0])


def test_an_offset_is_never_negative() -> None:
    made, response = surface()
    theta, _ = least_squares(made, response / 20, True, TRUTH[None] + 0.5, free(1))
    assert theta[0, 0] >= 0
    ends = profile(made, response / 20, True, theta[0], 0.95).ends
    assert ends[0, 0] >= 0


def test_a_flat_fit_has_no_end_and_says_what_moves_along() -> None:
    made, response = surface(rows=60, spread=0.05)
    theta, _ = least_squares(made, response, True, TRUTH[None], free(1))
    found = profile(made, response, True, theta[0], 0.95)
    assert np.isinf(found.ends).any()
    said = flat_directions(made, theta[0], found)
    assert len(said) == np.isinf(found.ends).any(axis=1).sum()
    assert all("is not bounded" in sentence for sentence in said)


def test_the_inverse_minds_no_units() -> None:
    matrix = np.array([[2e12, 3e3], [3e3, 8e-6]])
    assert inverse(matrix) == pytest.approx(np.linalg.inv(matrix), rel=1e-9)

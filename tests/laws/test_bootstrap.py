"""The bootstrap of rows: what a resample is, streams, memory, and resamples that reach no minimum."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from kbitlib.laws import estimate
from kbitlib.laws.bootstrap import draws
from kbitlib.laws.estimate import Loss, solve
from kbitlib.laws.forms import CHINCHILLA, FORMS
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

HUBER = Loss.named("huber", 1e-3)
LEAST_SQUARES = Loss("log-squared", on_logs=True)


def made_up(rows: int = 120) -> tuple[dict[str, FloatArray], FloatArray]:
    """Columns and a loss with noise of 1 %."""
    random = np.random.default_rng(0)
    params, tokens = np.exp(random.uniform(17, 23, rows)), np.exp(random.uniform(20, 26, rows))
    loss = (1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37) * np.exp(0.01 * random.standard_normal(rows))
    return {"params": params, "tokens": tokens}, loss


def test_a_draw_is_the_fit_of_the_rows_drawn() -> None:
    columns, loss = made_up()
    surface = Surface(CHINCHILLA, columns)
    theta = solve(surface, loss, HUBER).theta[0]
    rows = np.random.default_rng(1).integers(0, 120, (5, 120))
    found = draws(surface, loss, HUBER, theta, rows=rows)
    for drawn, refitted in zip(rows, found, strict=True):
        table = Surface(CHINCHILLA, {name: values[drawn] for name, values in columns.items()})
        assert refitted == pytest.approx(solve(table, loss[drawn], HUBER).theta[0], rel=1e-5)


def test_the_spread_is_the_delta_methods_for_least_squares() -> None:
    params = made_up(400)[0]["params"]
    loss = 9 * params**-0.1 * np.exp(0.01 * np.random.default_rng(2).standard_normal(400))
    surface = Surface(FORMS["power"], {"params": params})
    theta = solve(surface, loss, LEAST_SQUARES).theta
    log_mean, jacobian = surface.log_mean_and_jacobian(theta)
    residual = log_mean[0] - np.log(loss)
    expected = np.sqrt(np.diag(np.linalg.inv(jacobian[0] @ jacobian[0].T)) * (residual**2).sum() / 398)
    found = draws(surface, loss, LEAST_SQUARES, theta[0], resamples=2000)
    assert found.std(axis=0, ddof=1) == pytest.approx(expected, rel=0.1)


def test_a_seed_is_a_stream() -> None:
    columns, loss = made_up()
    surface = Surface(CHINCHILLA, columns)
    theta = solve(surface, loss, HUBER).theta[0]
    ten = draws(surface, loss, HUBER, theta, resamples=10, seed=3)
    assert ten.shape == (10, 5)
    assert np.array_equal(ten, draws(surface, loss, HUBER, theta, resamples=10, seed=3))
    assert not np.array_equal(ten, draws(surface, loss, HUBER, theta, resamples=10, seed=4))
    assert draws(surface, loss, HUBER, theta, resamples=600, seed=3)[:10] == pytest.approx(ten, rel=1e-6)


def test_memory_does_not_grow_with_the_resamples() -> None:
    columns, loss = made_up(600)
    surface = Surface(CHINCHILLA, columns)
    theta = solve(surface, loss, HUBER).theta[0]
    peaks = []
    for resamples in (500, 2500):
        tracemalloc.start()
        found = draws(surface, loss, HUBER, theta, resamples=resamples)
        peaks.append(tracemalloc.get_traced_memory()[1] - 3 * found.nbytes)  # the parts, and what they make together
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_a_lost_start_is_found_again() -> None:
    columns, loss = made_up()
    surface = Surface(CHINCHILLA, columns)
    theta = solve(surface, loss, HUBER).theta[0]
    lost = theta + np.array([0.0, -500.0, 0.0, 0.0, 0.0])  # a term that no longer counts
    near, far = (draws(surface, loss, HUBER, start, resamples=20) for start in (theta, lost))
    assert far == pytest.approx(near, rel=1e-5)


def test_what_reached_no_minimum_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, loss = made_up()
    surface = Surface(CHINCHILLA, columns)
    theta = solve(surface, loss, HUBER).theta[0]
    monkeypatch.setattr(estimate, "_TURNS", 1)
    monkeypatch.setattr(estimate, "_ITERATIONS", 1)
    assert np.isnan(draws(surface, loss, HUBER, theta, resamples=7)).all()


def test_bad_resamples_are_refused() -> None:
    columns, loss = made_up()
    surface = Surface(CHINCHILLA, columns)
    theta = np.array([1.8, 6.0, 7.6, 0.35, 0.37])
    with pytest.raises(ValueError, match="resamples is 0; at least 1 is needed"):
        draws(surface, loss, HUBER, theta, resamples=0)
    with pytest.raises(ValueError, match="rows holds 0 to 120; 0 to 119 are allowed"):
        draws(surface, loss, HUBER, theta, rows=np.array([[0, 120]]))

"""The minimiser: losses, projection, weights, starts."""

from __future__ import annotations

import numpy as np
import pytest

from kbitlib.laws.estimate import Loss, descend, minimise, solve
from kbitlib.laws.forms import CHINCHILLA, FORMS
from kbitlib.laws.projection import project
from kbitlib.laws.surface import Surface

RANDOM = np.random.default_rng(0)
COLUMNS = {"params": np.exp(RANDOM.uniform(10, 20, 30)), "tokens": np.exp(RANDOM.uniform(15, 25, 30))}


def bound(name: str) -> Surface:
    return Surface(FORMS[name], {column: COLUMNS[column] for column in FORMS[name].columns})


def test_huber_is_square_within_and_linear_beyond() -> None:
    loss = Loss.named("huber", 0.5)
    residual = np.array([-2.0, -0.5, 0.0, 0.2, 3.0])
    assert loss.rho(residual) == pytest.approx([0.875, 0.125, 0, 0.02, 1.375])
    slope = (loss.rho(residual + 1e-7) - loss.rho(residual - 1e-7)) / 2e-7
    assert loss.psi(residual) == pytest.approx(slope, abs=1e-6)
    plain = Loss.named("squared", 0.5)
    assert plain.objective(plain.rho(residual)) == pytest.approx(residual**2)


def test_a_released_boundary_is_left_again() -> None:
    surface = bound("chinchilla")
    truth = np.array([[1.7, np.log(400), np.log(900), 0.3, 0.4]])
    response = np.exp(surface.log_mean(truth)[0])
    start = truth.copy()
    start[0, 0] = 0.0
    found = minimise(surface, response, Loss("log-squared", on_logs=True), start)
    assert found.theta == pytest.approx(truth, rel=1e-6)


def test_a_constrained_minimum_has_no_better_neighbour() -> None:
    surface = bound("chinchilla")
    falling = np.exp(surface.log_mean(np.array([[0.0, np.log(400), np.log(900), 0.3, 0.4]]))[0]) - 0.3
    loss = Loss("huber", on_logs=True, threshold=1e-3)
    found = solve(surface, falling, loss)
    assert found.theta[0, 0] == 0
    assert found.gradient[0] < 1e-8
    for j in range(5):
        for step in (-1e-4, 1e-4):
            moved = found.theta.copy()
            moved[0, j] = max(moved[0, j] + step, 0.0) if j == 0 else moved[0, j] + step
            residual = surface.log_mean(moved)[0] - np.log(falling)
            assert loss.rho(residual).sum() >= found.value[0] * (1 - 1e-12)


def test_projection_finds_the_factors_of_an_exact_law() -> None:
    surface = bound("chinchilla")
    truth = np.array([[1.7, np.log(400), np.log(900), 0.3, 0.4]])
    response = np.exp(surface.log_mean(truth)[0])
    start = truth + np.array([[1.0, -3.0, 5.0, 0.0, 0.0]])
    assert project(surface, response, start) == pytest.approx(truth, abs=1e-8)


def test_row_weights_are_repeated_rows() -> None:
    counts = RANDOM.integers(0, 4, 30)
    surface = bound("power")
    response = 9 * COLUMNS["params"] ** -0.1 * np.exp(0.05 * RANDOM.standard_normal(30))
    loss = Loss("huber", on_logs=True, threshold=0.03)
    weighted = minimise(surface, response, loss, np.zeros((1, 2)), counts[None].astype(float))
    repeated = Surface(FORMS["power"], {"params": np.repeat(COLUMNS["params"], counts)})
    again = minimise(repeated, np.repeat(response, counts), loss, np.zeros((1, 2)))
    assert weighted.theta == pytest.approx(again.theta, rel=1e-8)
    assert weighted.value == pytest.approx(again.value, rel=1e-10)


def test_every_member_of_a_batch_is_by_itself() -> None:
    surface = bound("chinchilla")
    truth = np.array([1.7, np.log(400), np.log(900), 0.3, 0.4])
    noise = 0.01 * RANDOM.standard_normal((3, 30))
    responses = np.exp(surface.log_mean(truth) + noise)
    loss = Loss("huber", on_logs=True, threshold=1e-3)
    together = minimise(surface, responses, loss, np.tile(truth, (3, 1)))
    for i, response in enumerate(responses):
        alone = minimise(surface, response, loss, truth[None])
        assert together.theta[i] == pytest.approx(alone.theta[0], rel=1e-6)
        assert together.value[i] == pytest.approx(alone.value[0], rel=1e-10)
        assert alone.gradient[0] < 1e-8


def test_random_starts_reach_one_minimum() -> None:
    random = np.random.default_rng(1)
    surface = Surface(CHINCHILLA, {"params": COLUMNS["params"] * 1e3, "tokens": COLUMNS["tokens"]})
    truth = np.array([[1.8, np.log(480), np.log(2100), 0.35, 0.37]])
    response = np.exp(surface.log_mean(truth)[0] + 0.01 * random.standard_normal(30))
    starts = np.tile(truth, (40, 1))
    starts[:, 3:] = random.uniform(0.05, 1.5, (40, 2))
    found = descend(surface, response, Loss("log-squared", on_logs=True), starts)
    assert found.value == pytest.approx(np.full(40, found.value.min()), rel=1e-9)


def test_a_lost_descent_says_so() -> None:
    surface = bound("chinchilla")
    truth = np.array([[1.7, np.log(400), np.log(900), 0.3, 0.4]])
    response = np.exp(surface.log_mean(truth)[0] + 0.01 * RANDOM.standard_normal(30))
    start = truth + np.array([[0.0, np.inf, 0.0, 0.0, 0.0]])
    found = minimise(surface, response, Loss("log-squared", on_logs=True), start)
    assert not found.gradient[0] < 1e-6

"""Minimise a loss over a law's parameters: many starts or many weightings at once, with exact derivatives.

What is notable: starts have the best non-negative factors for their exponents (see ``projection``); least squares comes
before Huber's loss, whose threshold is then lowered in steps; a step is Newton's on the rows inside the threshold,
damped by the matrix of iteratively reweighted least squares; an offset stops at 0. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbitlib.laws.projection import above_zero, project, starts
from kbitlib.laws.steps import moved, without
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

_KEPT_STARTS = 8
_TURNS, _ITERATIONS = 16, 12  # iterations a turn
_DAMPING = 0.03  # at the start, a tenth after each step that improves
_LEAST_DAMPING = 1e-8
_STATIONARY = 1e-8  # the cosine at which iterations stop
_STUCK = 1e12  # the damping at which no step, however short, is an improvement
_ROUNDING = 1e-14  # of a value: what rounding may add to it
_CACHED = 2**15  # numbers of an array that several of fit into a processor's cache
CONVERGED = 1e-6  # largest cosine between the residuals and a column of the Jacobian that counts as a minimum


@dataclass(frozen=True)
class Loss:
    """A sum over rows of rho(residual): of the logarithms or of the loss itself; ``threshold`` is Huber's delta.

    rho is r^2/2 within the threshold and linear beyond it (Huber 1964); without one the objective is the sum of r^2.
    """

    name: str
    on_logs: bool
    threshold: float = np.inf

    @classmethod
    def named(cls, name: str, threshold: float) -> Loss:
        """``huber`` and ``log-squared`` on logarithms, ``squared`` on the loss itself; ValueError for another name."""
        if not threshold > 0:
            raise ValueError(f"huber_delta is {threshold}; a positive number is allowed")
        known = {
            "huber": cls("huber", True, threshold),
            "log-squared": cls("log-squared", True),
            "squared": cls("squared", False),
        }
        if name not in known:
            raise ValueError(f"loss {name!r} is unknown; {', '.join(known)} are allowed")
        return known[name]

    def rho(self, residual: FloatArray) -> FloatArray:
        size = np.abs(residual)
        inside = np.minimum(size, self.threshold)
        return inside * (size - 0.5 * inside)

    def psi(self, residual: FloatArray) -> FloatArray:
        return np.clip(residual, -self.threshold, self.threshold)

    def reweights(self, residual: FloatArray) -> FloatArray:
        """psi / residual, by which reweighted least squares weighs a row: 1 inside the threshold."""
        with np.errstate(divide="ignore"):
            return np.minimum(self.threshold / np.abs(residual), 1.0)

    def objective(self, total: FloatArray) -> FloatArray:
        return total if np.isfinite(self.threshold) else 2 * total


@dataclass(frozen=True)
class Minimum:
    """Minima of a batch: ``theta`` (B, p), ``value`` (B,), and ``gradient`` (B,).

    The gradient is the largest cosine between psi(residuals) and a column of the Jacobian: no units, 0 at a minimum.
    """

    theta: FloatArray
    value: FloatArray
    gradient: FloatArray

    def best(self, count: int) -> Minimum:
        """The ``count`` lowest, those counted once that several starts reached."""
        order = np.argsort(np.nan_to_num(self.value, nan=np.inf), kind="stable")
        value = self.value[order]
        new = np.append(True, np.diff(value) > 1e-9 * value[1:])
        chosen = order[new][:count]
        return Minimum(self.theta[chosen], self.value[chosen], self.gradient[chosen])


@dataclass
class _Place:
    """Where a batch of descents stands: parameters (B, p), and what follows from them."""

    theta: FloatArray
    log_mean: FloatArray  # (B, n)
    shares: list[FloatArray]  # (B, n) a term
    value: FloatArray  # (B,)

    def taken(self, kept: NDArray[np.bool_]) -> _Place:
        return _Place(self.theta[kept], self.log_mean[kept], [s[kept] for s in self.shares], self.value[kept])

    def moved(self, trial: _Place, better: NDArray[np.bool_]) -> _Place:
        """The trial where it is ``better``, and what was there before where it is not."""
        if better.all():
            return trial
        mine, others = (self.theta, self.log_mean, *self.shares), (trial.theta, trial.log_mean, *trial.shares)
        for here, there in zip(mine, others, strict=True):
            np.copyto(here, there, where=better[:, None])
        return replace(self, value=np.where(better, trial.value, self.value))


@dataclass(frozen=True)
class _Problem:
    """What a batch of descents minimises: the target, the response or its logarithm, and row weights (B, n).

    The target is that of each, (B, n), or of all, (1, n).
    """

    surface: Surface
    loss: Loss
    target: FloatArray
    weights: FloatArray

    def taken(self, kept: NDArray[np.bool_]) -> _Problem:
        return replace(self, target=_members(self.target, kept), weights=self.weights[kept])

    def residual(self, log_mean: FloatArray) -> FloatArray:
        return (log_mean if self.loss.on_logs else np.exp(log_mean)) - self.target

    def at(self, theta: FloatArray) -> _Place:
        log_mean, shares = self.surface.shares(theta)
        value = np.einsum("bn,bn->b", self.weights, self.loss.rho(self.residual(log_mean)))
        return _Place(theta, log_mean, shares, value)

    def system(self, place: _Place, damping: FloatArray | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Gradient (B, p), a matrix (B, p, p) and the cosine (B,) that it gives; 0 at a minimum.

        The matrix is J diag(weights) J', or Newton's of the rows inside the threshold plus ``damping`` (B,) times that
        of reweighted least squares.
        """
        slopes = self.surface.slopes(place.theta, place.log_mean, place.shares)
        residual = self.residual(place.log_mean)
        reweights = self.loss.reweights(residual)
        psi = residual * reweights
        pull = self.weights * psi
        size = np.einsum("bn,bn->b", pull, psi)
        counted = self.weights
        if damping is not None:
            counted = self.weights * (reweights * damping[:, None] + (reweights == 1))
        if not self.loss.on_logs:
            mean = np.exp(place.log_mean)  # the response's derivatives, over those of its logarithm
            pull, counted = pull * mean, counted * mean**2
        gradient = slopes.dot(pull)
        held = self.surface.offset & (place.theta <= 0) & (gradient > 0)  # at its boundary, and would go beyond
        gradient, matrix = gradient * ~held, without(held, slopes.gram(counted))
        lengths = np.sqrt(np.einsum("bii->bi", matrix) * size[:, None])
        cosine = np.divide(np.abs(gradient), lengths, out=np.zeros_like(gradient), where=lengths != 0).max(axis=1)
        exact = place.value <= 1e-28 * self.weights.sum(axis=1)  # the law holds exactly: no residual has a direction
        return gradient, matrix, np.where(exact, 0.0, cosine)

    def minimum(self, theta: FloatArray) -> Minimum:
        place = self.at(theta)
        return Minimum(theta, place.value, self.system(place, None)[2])


def _members(target: FloatArray, members: NDArray[Any] | slice) -> FloatArray:
    return target if len(target) == 1 else target[members]


def chunks(batch: int, rows: int, parts: int = 1) -> list[slice]:
    """A batch in as many members at a time as fit, with n rows each, into that many parts of a processor's cache."""
    size = max(1, parts * _CACHED // rows)
    return [slice(start, start + size) for start in range(0, batch, size)]


def minimise(
    surface: Surface,
    response: FloatArray,
    loss: Loss,
    theta: FloatArray,
    weights: FloatArray | None = None,
) -> Minimum:
    """Descend from every start ``theta`` (B, p) by damped Newton steps; memory beyond the arguments is constant.

    The response and the row weights are those of all, (n,), or of each start, (B, n).
    """
    shape = (len(theta), surface.rows)
    target = np.atleast_2d(np.log(response) if loss.on_logs else response)
    weights = np.broadcast_to(np.ones(surface.rows) if weights is None else weights, shape)
    theta, damping, going = theta.copy(), np.full(len(theta), _DAMPING), np.arange(len(theta))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(_TURNS):  # the slow ones of all parts are gathered for the next turn
            for part in chunks(len(going), surface.rows):
                members = going[part]
                problem = _Problem(surface, loss, _members(target, members), weights[members])
                theta[members], damping[members] = _descended(problem, theta[members], damping[members])
            going = going[np.isfinite(damping[going])]
        parts = [
            _Problem(surface, loss, _members(target, part), weights[part]).minimum(theta[part])
            for part in chunks(*shape)
        ]
    return Minimum(theta, np.concatenate([m.value for m in parts]), np.concatenate([m.gradient for m in parts]))


def _descended(problem: _Problem, theta: FloatArray, damping: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Parameters and dampings after some iterations; the damping is infinite where there is nothing left to do."""
    found, left, index = theta.copy(), np.full(len(theta), np.inf), np.arange(len(theta))
    here = problem.at(theta.copy())
    for _ in range(_ITERATIONS):
        gradient, matrix, cosine = problem.system(here, damping)
        going = (cosine > _STATIONARY) & (damping < _STUCK)
        if not going.all():
            found[index[~going]] = here.theta[~going]
            index, problem, here, damping = index[going], problem.taken(going), here.taken(going), damping[going]
            gradient, matrix = gradient[going], matrix[going]
        if not index.size:
            break
        trial = problem.at(moved(problem.surface.offset, here.theta, gradient, matrix, damping))
        better = trial.value <= here.value * (1 + _ROUNDING)
        here = here.moved(trial, better)
        damping = np.where(better, np.maximum(damping / 10, _LEAST_DAMPING), damping * 10)
    found[index], left[index] = here.theta, damping
    return found, left


def _thresholds(loss: Loss, residual: FloatArray) -> list[Loss]:
    """Huber's loss from a threshold as wide as the residuals down to its own, a quarter at a time."""
    widths = [loss.threshold]
    while widths[-1] < np.median(np.abs(residual)) and len(widths) < 12:
        widths.append(widths[-1] * 4)
    return [replace(loss, threshold=width) for width in reversed(widths)]


def descend(
    surface: Surface, response: FloatArray, loss: Loss, theta: FloatArray, weights: FloatArray | None = None
) -> Minimum:
    """Follow every start (B, p) by itself, in the order given: least squares on logarithms, then the loss asked for.

    A start is taken as it is, but for the factors of the terms where better ones lower the loss at once. Row weights
    are as in ``minimise``.
    """
    positive = above_zero(response)
    least_squares = Loss("log-squared", on_logs=True)
    minimum = minimise(surface, positive, least_squares, _projected(surface, positive, theta), weights)
    if not loss.on_logs:
        return minimise(surface, response, loss, minimum.theta, weights)
    if np.isfinite(loss.threshold):
        residual = surface.log_mean(minimum.best(1).theta[0]) - np.log(response)
        for step in _thresholds(loss, residual):
            minimum = minimise(surface, response, step, minimum.theta, weights)
    return minimum


def _projected(surface: Surface, response: FloatArray, theta: FloatArray) -> FloatArray:
    projected = project(surface, response, theta)
    given, then = _log_squares(surface, response, theta), _log_squares(surface, response, projected)
    return np.where((then < given)[:, None], projected, theta)


def _log_squares(surface: Surface, response: FloatArray, theta: FloatArray) -> FloatArray:
    """The sum of squared residuals of the logarithms (B,); infinite where it has no value."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        squares = ((surface.log_mean(theta) - np.log(response)) ** 2).sum(axis=1)
    return np.nan_to_num(squares, nan=np.inf)


def solve(surface: Surface, response: FloatArray, loss: Loss) -> Minimum:
    """The best minimum found from the best few of a grid of starts, as a batch of one."""
    positive = above_zero(response)
    theta = starts(surface, positive)
    theta = theta[np.argsort(_log_squares(surface, positive, theta))[:_KEPT_STARTS]]
    return descend(surface, response, loss, theta).best(1)

"""Minimise a loss over a law's parameters: many starts or many weightings at once, with exact derivatives.

What is notable: starts are a grid of exponents, each with its best non-negative factors (a linear problem); least
squares comes before Huber's loss, whose threshold is then lowered in steps; a step is Newton's on the rows inside the
threshold, damped by the matrix of iteratively reweighted least squares; an offset stops at 0. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

_KEPT_STARTS = 8
_ITERATIONS = 200
_LONGEST_STEP = 3.0  # of a logarithm or an exponent
_STATIONARY = 1e-11  # where iterations stop
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


@dataclass(frozen=True)
class _Problem:
    surface: Surface
    response: FloatArray  # (n,)
    loss: Loss

    def residual(self, log_mean: FloatArray) -> FloatArray:
        if self.loss.on_logs:
            return log_mean - np.log(self.response)
        return np.exp(log_mean) - self.response

    def value(self, theta: FloatArray, weights: FloatArray | float = 1.0) -> FloatArray:
        rho = self.loss.rho(self.residual(self.surface.log_mean(theta)))
        return np.asarray((weights * rho).sum(axis=-1))

    def system(self, theta: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Gradient (B, p), Newton's matrix of rows inside the threshold, the reweighted one, and the cosine (B,)."""
        log_mean, jacobian = self.surface.log_mean_and_jacobian(theta)
        if not self.loss.on_logs:
            jacobian = jacobian * np.exp(log_mean)[..., None, :]
        residual = self.residual(log_mean)
        psi = self.loss.psi(residual)
        pull = weights * psi
        gradient = (jacobian @ pull[..., None])[..., 0]
        inside = weights * (np.abs(residual) <= self.loss.threshold)
        reweighted = weights * np.divide(psi, residual, out=np.ones_like(psi), where=residual != 0)
        newton = (jacobian * inside[..., None, :]) @ np.swapaxes(jacobian, -1, -2)
        damping = (jacobian * reweighted[..., None, :]) @ np.swapaxes(jacobian, -1, -2)
        held = self.surface.offset & (theta <= 0) & (gradient > 0)  # at its boundary, and would go beyond
        gradient, newton, damping = gradient * ~held, _without(held, newton), _without(held, damping)
        lengths = np.sqrt((jacobian**2 * weights[..., None, :]).sum(axis=-1) * (pull * psi).sum(axis=-1)[..., None])
        cosine = np.divide(np.abs(gradient), lengths, out=np.zeros_like(gradient), where=lengths > 0)
        return gradient, newton, damping, cosine.max(axis=-1)


def _without(held: NDArray[np.bool_], matrix: FloatArray) -> FloatArray:
    """A system matrix (B, p, p) in which the ``held`` parameters (B, p) do not move and the others do not feel them."""
    free = (~held).astype(np.float64)
    return np.asarray(matrix * free[:, :, None] * free[:, None, :] + held[:, :, None] * np.eye(held.shape[1]))


def _solve(gradient: FloatArray, matrix: FloatArray) -> FloatArray:
    """Minus the gradient through the matrix, (B, p), scaled by its diagonal so that parameters may have any unit."""
    scale = np.sqrt(np.maximum(np.einsum("bii->bi", matrix), 1e-300))
    scaled = matrix / (scale[:, :, None] * scale[:, None, :]) + 1e-13 * np.eye(matrix.shape[-1])
    return np.asarray(-np.linalg.solve(scaled, (gradient / scale)[..., None])[..., 0] / scale)


def _step(surface: Surface, theta: FloatArray, gradient: FloatArray, matrix: FloatArray) -> FloatArray:
    """The step (B, p) through the matrix; an offset at 0 that it would take below is held there."""
    step = _solve(gradient, matrix)
    held = surface.offset & (theta <= 0) & (step < 0)
    if not held.any():
        return step
    return _solve(gradient * ~held, _without(held, matrix))


def _shortened(surface: Surface, theta: FloatArray, step: FloatArray) -> FloatArray:
    """The step, cut so that no offset goes below 0 and no other parameter moves further than the longest step."""
    room = np.where(surface.offset, np.where(step < 0, theta, np.inf), _LONGEST_STEP)
    cut = np.divide(room, np.abs(step), out=np.full_like(step, np.inf), where=step != 0).min(axis=1)
    moved = theta + np.minimum(cut, 1.0)[:, None] * step
    return np.asarray(np.where(surface.offset, np.maximum(moved, 0.0), moved))


def minimise(
    surface: Surface,
    response: FloatArray,
    loss: Loss,
    theta: FloatArray,
    weights: FloatArray | None = None,
) -> Minimum:
    """Descend from every start ``theta`` (B, p), with row weights (n,) or (B, n), by damped Newton steps."""
    problem = _Problem(surface, response, loss)
    theta = theta.copy()
    weights = np.broadcast_to(np.ones(surface.rows) if weights is None else weights, (len(theta), surface.rows))
    damping = np.full(len(theta), 0.1)
    gradient = np.ones(len(theta))
    active = np.arange(len(theta))
    with np.errstate(over="ignore", invalid="ignore"):
        value = problem.value(theta, weights)
        for _ in range(_ITERATIONS):
            slope, newton, reweighted, gradient[active] = problem.system(theta[active], weights[active])
            flat = value[active] <= 1e-28 * surface.rows  # the law holds exactly: no residual has a direction
            gradient[active[flat]] = 0.0
            going = (gradient[active] > _STATIONARY) & (damping[active] < 1e12)
            active = active[going]
            if not active.size:
                break
            matrix = newton[going] + damping[active, None, None] * reweighted[going]
            trial = _shortened(surface, theta[active], _step(surface, theta[active], slope[going], matrix))
            trial_value = problem.value(trial, weights[active])
            better = trial_value < value[active]
            theta[active[better]] = trial[better]
            value[active[better]] = trial_value[better]
            damping[active] = np.where(better, np.maximum(damping[active] / 10, 1e-6), damping[active] * 10)
    return Minimum(theta, value, gradient)


def _nonnegative(basis: FloatArray) -> FloatArray:
    """Non-negative factors (B, terms) that bring the basis (B, n, terms) closest to 1, by trying every set of terms."""
    batch, _, terms = basis.shape
    best = np.full(batch, np.inf)
    factors = np.zeros((batch, terms))
    lengths = np.maximum(np.linalg.norm(basis, axis=1), 1e-300)  # (B, terms)
    scaled = basis / lengths[:, None, :]
    for size in range(1, terms + 1):
        for chosen in map(list, combinations(range(terms), size)):
            part = scaled[:, :, chosen]
            solution = np.linalg.pinv(part).sum(axis=-1)  # (B, size): least squares for a target of ones
            distance = ((np.einsum("bnt,bt->bn", part, solution) - 1) ** 2).sum(axis=-1)
            taken = (solution >= 0).all(axis=1) & (distance < best)
            best[taken] = distance[taken]
            factors[taken] = 0.0
            factors[np.ix_(taken, chosen)] = solution[taken]
    return np.asarray(factors / lengths)


def project(surface: Surface, response: FloatArray, theta: FloatArray) -> FloatArray:
    """``theta`` (B, p) with the terms' factors replaced by the best ones for its exponents (variable projection)."""
    terms = len(surface.form.coefficients)
    theta = surface.with_factors(theta, np.zeros(terms))
    logs = np.stack([np.broadcast_to(t, (len(theta), surface.rows)) for t in surface.log_terms(theta)], axis=-1)
    logs = logs - np.log(response)[:, None]
    shift = logs.max(axis=1)  # (B, terms): keeps the exponentials finite
    factors = _nonnegative(np.exp(logs - shift[:, None, :]))
    smallest = 1e-3 / terms  # a term that the projection dropped keeps a little, so that it can come back
    return surface.with_factors(theta, np.log(np.maximum(factors, smallest)) - shift)


def _linear_start(surface: Surface, response: FloatArray) -> FloatArray:
    log_mean, jacobian = surface.log_mean_and_jacobian(np.zeros((1, len(surface.names))))
    return np.asarray(np.linalg.lstsq(jacobian[0].T, np.log(response) - log_mean[0], rcond=None)[0][None])


def starts(surface: Surface, response: FloatArray) -> FloatArray:
    """Where to descend from: the least-squares solution of a linear law, a projected grid of exponents of any other."""
    if surface.form.linear:
        return _linear_start(surface, response)
    return project(surface, response, surface.starts())


def _thresholds(loss: Loss, residual: FloatArray) -> list[Loss]:
    """Huber's loss from a threshold as wide as the residuals down to its own, a quarter at a time."""
    widths = [loss.threshold]
    while widths[-1] < np.median(np.abs(residual)) and len(widths) < 12:
        widths.append(widths[-1] * 4)
    return [Loss(loss.name, loss.on_logs, width) for width in reversed(widths)]


def descend(surface: Surface, response: FloatArray, loss: Loss, theta: FloatArray) -> Minimum:
    """From starts (B, p) through least squares on logarithms to the loss asked for; the best first."""
    least_squares = Loss("log-squared", on_logs=True)
    theta = theta[np.argsort(_Problem(surface, _above_zero(response), least_squares).value(theta))[:_KEPT_STARTS]]
    minimum = minimise(surface, _above_zero(response), least_squares, theta).best(_KEPT_STARTS)
    if not loss.on_logs:
        return minimise(surface, response, loss, minimum.theta).best(_KEPT_STARTS)
    if np.isfinite(loss.threshold):
        residual = surface.log_mean(minimum.theta[0]) - np.log(response)
        for step in _thresholds(loss, residual):
            minimum = minimise(surface, response, step, minimum.theta)
    return minimum.best(_KEPT_STARTS)


def solve(surface: Surface, response: FloatArray, loss: Loss) -> Minimum:
    """The best minimum found, as a batch of one."""
    return descend(surface, response, loss, starts(surface, _above_zero(response))).best(1)


def _above_zero(response: FloatArray) -> FloatArray:
    """The response where a start needs its logarithm: what is not positive counts as the smallest size that occurs."""
    return np.where(response > 0, response, np.abs(response[response != 0]).min(initial=1.0))

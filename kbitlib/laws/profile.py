"""Profiles of a least-squares fit: how much worse it gets where one parameter is held, and where that is too much.

The profile-F interval holds every value of a parameter at which the sum of squares, least over all others, exceeds the
minimum by less than F(1, n - p) times the residual variance (Bates & Watts 1988, section 6.1). It follows a law where
that is far from a plane, so it keeps its level where columns are nearly collinear. An end that no value reaches is
infinite: along it the fit is flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

_ITERATIONS = 200
_LONGEST_STEP = 3.0  # of a logarithm or an exponent
_FURTHEST = 100.0  # half-widths of the Delta method's interval at which an end counts as infinite
_TRIALS = 40
_CLOSE = 1e-3  # of the t quantile: how well the ends are found


def linearised(
    surface: Surface, response: FloatArray, on_logs: bool, theta: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Residuals (..., n), observed less fitted, and slopes (..., p, n) at ``theta`` (..., p), of logs or levels."""
    log_mean, slopes = surface.log_mean_and_jacobian(theta)
    if on_logs:
        return np.log(response) - log_mean, slopes
    mean = np.exp(log_mean)
    return response - mean, slopes * mean[..., None, :]


def inverse(matrix: FloatArray) -> FloatArray:
    """The inverse (p, p), scaled by the diagonal first: parameters have very different units."""
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    return np.asarray(np.linalg.pinv(matrix * np.outer(scale, scale)) * np.outer(scale, scale))


def least_squares(
    surface: Surface, response: FloatArray, on_logs: bool, theta: FloatArray, held: NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """Least squares from ``theta`` (B, p) with the ``held`` parameters (B, p) kept: parameters, sums of squares (B,).

    ``response`` (n,) or (B, n): many tables of one design are fitted at once. Levenberg-Marquardt; offsets >= 0.
    """
    theta = theta.copy()
    response = np.broadcast_to(response, (len(theta), surface.rows))
    damping = np.full(len(theta), 1e-3)
    active = np.arange(len(theta))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = _sum_of_squares(surface, response, on_logs, theta)
        for _ in range(_ITERATIONS):
            step, expected = _step(surface, response[active], on_logs, theta[active], held[active], damping[active])
            going = (expected > 1e-11 * value[active]) & (damping[active] < 1e10)
            active, step = active[going], step[going]
            if not active.size:
                break
            trial = theta[active] + step
            trial = np.where(surface.offset, np.maximum(trial, 0.0), trial)
            trial_value = _sum_of_squares(surface, response[active], on_logs, trial)
            better = trial_value < value[active]
            theta[active[better]], value[active[better]] = trial[better], trial_value[better]
            damping[active] = np.where(better, np.maximum(damping[active] / 10, 1e-12), damping[active] * 10)
    return theta, value


def _sum_of_squares(surface: Surface, response: FloatArray, on_logs: bool, theta: FloatArray) -> FloatArray:
    log_mean = surface.log_mean(theta)
    return np.asarray(((np.log(response) - log_mean if on_logs else response - np.exp(log_mean)) ** 2).sum(axis=-1))


def _step(
    surface: Surface,
    response: FloatArray,
    on_logs: bool,
    theta: FloatArray,
    held: NDArray[np.bool_],
    damping: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """The damped step (B, p) and the decrease (B,) that it promises."""
    residual, slopes = linearised(surface, response, on_logs, theta)
    pull = (slopes @ residual[..., None])[..., 0]
    held = held | (surface.offset & (theta <= 0) & (pull < 0))
    free = ~held
    matrix = slopes @ np.swapaxes(slopes, -1, -2) * (free[:, :, None] & free[:, None, :])
    scale = np.where(held, 1.0, np.sqrt(np.maximum(np.einsum("bpp->bp", matrix), 1e-300)))
    scaled = matrix / (scale[:, :, None] * scale[:, None, :])
    scaled += (held + damping[:, None] + 1e-13)[:, :, None] * np.eye(theta.shape[1])
    pull = pull * free
    step = np.linalg.solve(scaled, (pull / scale)[..., None])[..., 0] / scale
    size = np.where(surface.offset, 0.0, np.abs(step)).max(axis=1)
    step = step * np.minimum(1.0, _LONGEST_STEP / np.maximum(size, 1e-300))[:, None]
    return step, (pull * step).sum(axis=1)


def _lower(
    surface: Surface, response: FloatArray, on_logs: bool, near: FloatArray, ahead: FloatArray, held: NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """Least squares from two starts (B, p) each, the lower of the two."""
    starts = np.concatenate([near, np.where(surface.offset, np.maximum(ahead, 0.0), ahead)])
    theta, value = least_squares(surface, response, on_logs, starts, np.concatenate([held, held]))
    first = (value[: len(near)] <= value[len(near) :]) | np.isnan(value[len(near) :])
    return np.where(first[:, None], theta[: len(near)], theta[len(near) :]), np.where(first, *np.split(value, 2))


@dataclass(frozen=True)
class Profile:
    """The ends (p, 2) of the profile-F intervals, and all parameters (p, 2, p) there: the others are refitted."""

    ends: FloatArray
    points: FloatArray


def profile(surface: Surface, response: FloatArray, on_logs: bool, theta: FloatArray, level: float) -> Profile:
    """Profile-F intervals of every parameter about the least-squares estimate ``theta`` (p,)."""
    residual, slopes = linearised(surface, response, on_logs, theta[None])
    best, parameters = float(residual[0] @ residual[0]), len(theta)
    freedom = surface.rows - parameters
    target = float(stats.t.ppf(0.5 + level / 2, freedom))
    covariance = inverse(slopes[0] @ slopes[0].T)
    which, side = np.repeat(np.arange(parameters), 2), np.tile([-1.0, 1.0], parameters)
    variance = np.diag(covariance)[which]
    along = covariance[which] / variance[:, None] * side[:, None]  # how all move where one is moved away
    width = target * np.sqrt(variance * best / freedom)
    room = np.where(surface.offset[which] & (side < 0), theta[which], _FURTHEST * width)
    held = which[:, None] == np.arange(parameters)

    inner, inner_size, inside = np.zeros(len(which)), np.zeros(len(which)), np.tile(theta, (len(which), 1))
    outer, outer_size = np.full(len(which), np.inf), np.full(len(which), np.inf)
    at, points = np.minimum(width, room), np.tile(theta, (len(which), 1))
    active = np.arange(len(which))
    for trial in range(_TRIALS):
        near = np.where(held, (theta[which] + side * at)[:, None], inside)[active]
        ahead = np.where(held[active], near, inside[active] + along[active] * (at - inner)[active, None])
        points[active], value = _lower(surface, response, on_logs, near, ahead, held[active])
        size = np.sqrt(np.maximum(value - best, 0.0) / (best / freedom))
        within = size <= target
        low, high = active[within], active[~within]
        inner[low], inner_size[low], inside[low] = at[low], size[within], points[low]
        outer[high], outer_size[high] = at[high], size[~within]
        done = (np.abs(size - target) < _CLOSE * target) | (within & (at >= room)[active])
        active = active[~done]
        if not active.size:
            break
        share = (target - inner_size) / np.where(np.isfinite(outer), outer_size - inner_size, 1.0)
        share = np.clip(share, 0.05, 0.95) if trial % 2 else np.full_like(share, 0.5)
        between = inner + share * np.where(np.isfinite(outer), outer - inner, 0.0)
        beyond = inner * np.clip(1.02 * target / np.maximum(inner_size, 1e-12), 1.2, 2.0)
        at = np.minimum(np.where(np.isfinite(outer), between, beyond), room)
    unreached = ~np.isfinite(outer) & (inner >= room) & ~(surface.offset[which] & (side < 0))
    ends = np.where(unreached, side * np.inf, points[np.arange(len(which)), which])
    return Profile(ends.reshape(parameters, 2), points.reshape(parameters, 2, parameters))


def flat_directions(surface: Surface, theta: FloatArray, found: Profile) -> list[str]:
    """A sentence for each parameter that the rows do not bound: to which side, and what moves along with it."""
    said = []
    names = [f"log {name}" if log else name for name, log in zip(surface.names, surface.positive, strict=True)]
    for j, name in enumerate(names):
        sides = [word for word, end in zip(("below", "above"), found.ends[j], strict=True) if np.isinf(end)]
        if not sides:
            continue
        far = found.points[j, 1 if sides == ["above"] else 0] - theta
        moved = [i for i in np.argsort(-np.abs(far)) if i != j and abs(far[i]) > 0.1 * np.abs(far).max()]
        along = f", while {' and '.join(names[i] for i in moved)} move along" if moved else ""
        said.append(f"{name} is not bounded {' or '.join(sides)}: the fit is flat{along}")
    return said

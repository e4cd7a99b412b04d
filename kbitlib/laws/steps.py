"""A step of Newton's method for many parameter vectors at once, damped, cut short, and held at boundaries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kbitlib.laws.tables import FloatArray

_LONGEST_STEP = 3.0  # of a logarithm or an exponent
_RIDGE = 1e-3  # of the damping goes to the diagonal: more would stop a step along a narrow valley


def without(held: NDArray[np.bool_], matrix: FloatArray) -> FloatArray:
    """A system matrix (B, p, p) in which the ``held`` parameters (B, p) do not move and the others do not feel them."""
    if not held.any():
        return matrix
    free = (~held).astype(np.float64)
    return np.asarray(matrix * free[:, :, None] * free[:, None, :] + held[:, :, None] * np.eye(held.shape[1]))


def _solve(gradient: FloatArray, matrix: FloatArray, damping: FloatArray) -> FloatArray:
    """Minus the gradient through the matrix, (B, p), its diagonal damped (Marquardt): parameters may have any unit."""
    scale = np.sqrt(np.maximum(np.einsum("bii->bi", matrix), 1e-300))
    ridge = (1e-13 + _RIDGE * damping)[:, None, None] * np.eye(matrix.shape[-1])
    scaled = matrix / (scale[:, :, None] * scale[:, None, :]) + ridge
    return np.asarray(-np.linalg.solve(scaled, (gradient / scale)[..., None])[..., 0] / scale)


def moved(
    offset: NDArray[np.bool_], theta: FloatArray, gradient: FloatArray, matrix: FloatArray, damping: FloatArray
) -> FloatArray:
    """``theta`` after a step; it is cut so that no offset goes below 0 and no other parameter further than allowed."""
    step = _solve(gradient, matrix, damping)
    held = offset & (theta <= 0) & (step < 0)
    if held.any():
        step = _solve(gradient * ~held, without(held, matrix), damping)
    room = np.where(offset, np.where(step < 0, theta, np.inf), _LONGEST_STEP)
    cut = np.divide(room, np.abs(step), out=np.full_like(step, np.inf), where=step != 0).min(axis=1)
    there = theta + np.minimum(cut, 1.0)[:, None] * step
    return np.asarray(np.where(offset, np.maximum(there, 0.0), there))

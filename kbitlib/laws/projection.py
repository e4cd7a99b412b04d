"""Where descents start: the factors of a law's terms are the best ones for given exponents (variable projection).

At given exponents a law is linear in the factors of its terms, so only exponents need a grid (Golub & Pereyra 1973).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray


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
    if not terms:
        return theta
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


def above_zero(response: FloatArray) -> FloatArray:
    """The response where a start needs its logarithm: what is not positive counts as the smallest size that occurs."""
    return np.where(response > 0, response, np.abs(response[response != 0]).min(initial=1.0))

"""Sums over rows of a law's derivatives, for many parameter vectors at once: what a descent needs of them.

Most laws are sums of terms whose logarithms are linear in the parameters. A derivative is then the share that a term
has in the prediction times a fixed number, and the sums are products with matrices that never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kbitlib.laws.tables import FloatArray


class Slopes(Protocol):
    """Derivatives J of the logarithm of the prediction at B parameter vectors: p parameters by n rows each."""

    def dot(self, values: FloatArray) -> FloatArray:
        """J values, (B, p), for values (B, n)."""

    def gram(self, weights: FloatArray) -> FloatArray:
        """J diag(weights) J', (B, p, p), for weights (B, n)."""


@dataclass(frozen=True)
class DenseSlopes:
    """The derivatives written out, for any law."""

    jacobian: FloatArray  # (B, p, n)

    def dot(self, values: FloatArray) -> FloatArray:
        return np.asarray((self.jacobian @ values[..., None])[..., 0])

    def gram(self, weights: FloatArray) -> FloatArray:
        return np.asarray((self.jacobian * weights[:, None, :]) @ np.swapaxes(self.jacobian, 1, 2))


@dataclass(frozen=True)
class Term:
    """A term whose logarithm is linear: its derivatives (c, n) by the parameters at ``positions`` (c,)."""

    positions: NDArray[np.intp]
    slopes: FloatArray


@dataclass(frozen=True)
class Design:
    """The linear terms of a law with ``parameters`` parameters."""

    terms: Sequence[Term]
    parameters: int

    @cached_property
    def products(self) -> list[tuple[int, int, FloatArray]]:
        """For each pair of terms, the products of their derivatives: (n, c c')."""
        pairs = combinations_with_replacement(range(len(self.terms)), 2)
        return [(i, j, _products(self.terms[i].slopes, self.terms[j].slopes)) for i, j in pairs]


def _products(left: FloatArray, right: FloatArray) -> FloatArray:
    return np.ascontiguousarray((left[:, None, :] * right[None, :, :]).reshape(-1, left.shape[1]).T)


@dataclass(frozen=True)
class TermSlopes:
    """The derivatives of linear terms that have the ``shares`` (B, n) in the prediction, one array a term."""

    design: Design
    shares: Sequence[FloatArray]

    def dot(self, values: FloatArray) -> FloatArray:
        found = np.zeros((len(values), self.design.parameters))
        for term, share in zip(self.design.terms, self.shares, strict=True):
            found[:, term.positions] += (values * share) @ term.slopes.T
        return found

    def gram(self, weights: FloatArray) -> FloatArray:
        found = np.zeros((len(weights), self.design.parameters, self.design.parameters))
        weighted = [weights * share for share in self.shares]
        for i, j, products in self.design.products:
            rows, columns = self.design.terms[i].positions, self.design.terms[j].positions
            block = ((weighted[i] * self.shares[j]) @ products).reshape(-1, len(rows), len(columns))
            found[:, rows[:, None], columns] += block
            if i != j:
                found[:, columns[:, None], rows] += np.swapaxes(block, 1, 2)
        return found

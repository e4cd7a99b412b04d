"""A law bound to a table's columns: its values and their exact derivatives, for many parameter vectors at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, reduce
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kbitlib.laws.form import Form, Parameter
from kbitlib.laws.slopes import DenseSlopes, Design, Slopes, Term, TermSlopes
from kbitlib.laws.tables import FloatArray, Levels, full_precision, is_labels

_COMPLEX_STEP = 1e-30  # its square vanishes, so the derivative is exact to rounding (Squire & Trapp 1998)


def label(level: float | str) -> str:
    """A level as it is written in names: ``4``, ``1.58``, ``nf4-b64``."""
    return level if isinstance(level, str) else f"{level:g}"


class Surface:
    """A form on n rows. A parameter vector ``theta`` (..., p) holds positive parameters by their logarithms.

    ``levels`` are the k, or labels that stand for k, with parameters of their own, by default those in the rows.
    Raises ValueError for a row of another level, and for labels where the form computes with k.
    """

    def __init__(self, form: Form, columns: Mapping[str, Levels], levels: Levels | None = None) -> None:
        self.form = form
        self.rows = len(next(iter(columns.values())))
        self._refuse_labels(columns)
        logs = {f"log_{name}": np.log(values) for name, values in columns.items() if name != "k"}
        self._x = SimpleNamespace(**columns, **logs)
        self._pinned = any(parameter.one_at_full_precision for parameter in form.parameters)
        self.levels: Levels = self._levels_of(columns) if levels is None else levels
        if form.names_levels:
            self._level_of_row = self._place(columns["k"])
        self.names: list[str] = []
        self._slices: dict[str, slice] = {}
        for parameter in form.parameters:
            names = [f"{parameter.name}[{label(k)}]" for k in self.levels] if parameter.by_k else [parameter.name]
            self._slices[parameter.name] = slice(len(self.names), len(self.names) + len(names))
            self.names += names
        self.positive = np.zeros(len(self.names), dtype=bool)
        self.offset = np.zeros(len(self.names), dtype=bool)
        for parameter in form.parameters:
            self.positive[self._slices[parameter.name]] = parameter.positive
            self.offset[self._slices[parameter.name]] = parameter.offset

    def _refuse_labels(self, columns: Mapping[str, Levels]) -> None:
        if not self.form.names_levels and "k" in columns and is_labels(columns["k"]):
            raise ValueError(
                f"law {self.form.name} computes with k, which holds labels, as {str(columns['k'][0])!r}; numbers of "
                "bits are allowed"
            )

    def _levels_of(self, columns: Mapping[str, Levels]) -> Levels:
        if not self.form.names_levels:
            return np.empty(0)
        levels: Levels = np.unique(columns["k"])
        return levels[~full_precision(levels)] if self._pinned else levels

    def _place(self, k: Levels) -> NDArray[np.intp]:
        """The position of each row's k among the levels; one past the last for full precision where that is pinned."""
        position = {label(level): i for i, level in enumerate(self.levels)}
        found, of_row = np.unique(k, return_inverse=True)
        if self._pinned:
            position |= {label(level): len(self.levels) for level in found[full_precision(found)]}
        for level in map(label, found):
            if level not in position:
                raise ValueError(f"k = {level} was not among the rows fitted; {', '.join(position)} were")
        return np.array([position[label(level)] for level in found], dtype=np.intp)[of_row]

    def with_factors(self, theta: FloatArray, log_factors: FloatArray) -> FloatArray:
        """``theta`` (..., p) with the factors of the terms replaced by those of the given logarithms (..., terms)."""
        theta = theta.copy()
        positions = [self._slices[name].start for name in self.form.coefficients]
        with np.errstate(over="ignore"):
            theta[..., positions] = np.where(self.offset[positions], np.exp(log_factors), log_factors)
        return theta

    def _values(self, parameter: Parameter, theta: NDArray[Any]) -> NDArray[Any]:
        values = theta[..., self._slices[parameter.name]]
        if parameter.offset:
            with np.errstate(divide="ignore"):
                return np.asarray(np.log(values))
        if not parameter.by_k:
            return values
        at_full_precision = np.zeros((*values.shape[:-1], 1))
        return np.concatenate([values, at_full_precision], axis=-1)[..., self._level_of_row]

    def log_terms(self, theta: NDArray[Any]) -> list[NDArray[Any]]:
        """The logarithm of each term, (..., n) or (..., 1), for theta (..., p)."""
        p = SimpleNamespace()
        for parameter in self.form.parameters:
            by_logarithm = parameter.positive or parameter.offset
            setattr(p, f"log_{parameter.name}" if by_logarithm else parameter.name, self._values(parameter, theta))
        return self.form.log_terms(self._x, p)

    def shares(self, theta: FloatArray) -> tuple[FloatArray, list[FloatArray]]:
        """The logarithm of the prediction (..., n), by log-sum-exp, and the part each term has in it, (..., n) each."""
        terms = self.log_terms(theta)
        if len(terms) == 1:
            log_mean = np.broadcast_to(terms[0], (*theta.shape[:-1], self.rows)).copy()
            return log_mean, [np.ones_like(log_mean)]
        highest = reduce(np.maximum, [term.max(axis=-1, keepdims=True) for term in terms])
        parts = [np.exp(term - highest) for term in terms]
        total = np.broadcast_to(reduce(np.add, parts), (*theta.shape[:-1], self.rows))
        inverse = 1 / total
        return np.log(total) + highest, [part * inverse for part in parts]

    def log_mean(self, theta: FloatArray) -> FloatArray:
        """The logarithm of the prediction, (..., n)."""
        return self.shares(theta)[0]

    def log_mean_and_jacobian(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The logarithm of the prediction (..., n) and its derivative by every parameter (..., p, n)."""
        log_mean, shares = self.shares(theta)
        return log_mean, self._jacobian(theta, log_mean, shares)

    def slopes(self, theta: FloatArray, log_mean: FloatArray, shares: list[FloatArray]) -> Slopes:
        """The derivatives at theta (B, p), where the logarithm of the prediction and the shares are as given."""
        if self._design is None:
            return DenseSlopes(self._jacobian(theta, log_mean, shares))
        parts = list(shares)
        for i, term in enumerate(self._design.terms):
            if self.offset[term.positions].any():  # of E, share / E is 1 / prediction, which holds at E = 0 too
                offset = theta[:, term.positions]
                with np.errstate(over="ignore"):
                    parts[i] = shares[i] / offset if (offset > 0).all() else np.exp(-log_mean)
        return TermSlopes(self._design, parts)

    def _jacobian(self, theta: FloatArray, log_mean: FloatArray, shares: list[FloatArray]) -> FloatArray:
        jacobian = np.zeros((*theta.shape, self.rows))
        if self._design is not None:
            for term, share in zip(self._design.terms, shares, strict=True):
                jacobian[..., term.positions, :] += share[..., None, :] * term.slopes
        else:
            for derivative, share in zip(self._derivatives(theta), shares, strict=True):
                jacobian += share[..., None, :] * derivative
        with np.errstate(over="ignore"):
            jacobian[..., self.offset, :] = np.exp(-log_mean)[..., None, :]  # holds at an offset of 0 too
        return jacobian

    def _derivatives(self, theta: FloatArray) -> list[FloatArray]:
        """The derivatives of each term's logarithm by every parameter, (..., p, n) or (..., p, 1)."""
        steps = theta[..., None, :] + 1j * _COMPLEX_STEP * np.eye(len(self.names))  # (..., p, p)
        return [term.imag / _COMPLEX_STEP for term in self.log_terms(steps)]

    @cached_property
    def _design(self) -> Design | None:
        """The fixed derivatives of the terms' logarithms (by that of an offset), where the terms are linear."""
        terms = []
        places = np.linspace([0.2, 0.5], [0.4, 0.3], len(self.names), axis=1)  # (2, p): any two will do
        scale = np.where(self.offset, places, 1.0)[:, :, None]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            derivatives = self._derivatives(places)
        for derivative in derivatives:
            here, there = np.broadcast_to(derivative * scale, (*places.shape, self.rows))
            if not np.allclose(here, there, rtol=1e-12, atol=1e-12):
                return None
            moving = np.flatnonzero((here != 0).any(axis=1))
            terms.append(Term(moving, here[moving]))
        return Design(terms, len(self.names))

    def log_columns(self) -> pd.DataFrame:
        """The logarithms of the columns, k left out where it names levels: (n, columns)."""
        named = ("k",) if self.form.names_levels else ()
        return pd.DataFrame({name: np.log(getattr(self._x, name)) for name in self.form.columns if name not in named})

    def natural(self, theta: FloatArray) -> FloatArray:
        """Parameters as they are reported: positive ones taken back from their logarithms."""
        with np.errstate(over="ignore"):  # the end of a very wide interval
            return np.where(self.positive, np.exp(np.where(self.positive, theta, 0.0)), theta)

    def starts(self) -> FloatArray:
        """Starting vectors (m, p), a deterministic grid; the terms' factors are still 1."""
        values = {} if self.form.starts is None else self.form.starts(self._x)
        theta = np.zeros((max(map(len, values.values()), default=1), len(self.names)))
        for name, column in values.items():
            positions = self._slices[name]
            theta[:, positions] = (np.log(column) if self.positive[positions].all() else column)[:, None]
        return self.with_factors(theta, np.zeros(len(self.form.coefficients)))

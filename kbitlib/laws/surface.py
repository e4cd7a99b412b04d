"""A law bound to a table's columns: its values and their exact derivatives, for many parameter vectors at once."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kbitlib.laws.forms import FULL_PRECISION, Form, Parameter
from kbitlib.laws.tables import FloatArray

_COMPLEX_STEP = 1e-30  # its square vanishes, so the derivative is exact to rounding (Squire & Trapp 1998)


def label(k: float) -> str:
    """k as it is written in names: ``4``, ``1.58``."""
    return f"{k:g}"


class Surface:
    """A form on n rows. A parameter vector ``theta`` (..., p) holds positive parameters by their logarithms.

    ``levels`` are the k with parameters of their own, by default those in the rows; ValueError for a row of another k.
    """

    def __init__(self, form: Form, columns: Mapping[str, FloatArray], levels: FloatArray | None = None) -> None:
        self.form = form
        self.rows = len(next(iter(columns.values())))
        logs = {f"log_{name}": np.log(values) for name, values in columns.items() if name != "k"}
        self._x = SimpleNamespace(**columns, **logs)
        self.levels = self._levels_of(columns) if levels is None else levels
        if any(parameter.by_k for parameter in form.parameters):
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

    def _levels_of(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        if "k" not in columns:
            return np.empty(0)
        levels = np.unique(columns["k"])
        pinned = any(parameter.one_at_full_precision for parameter in self.form.parameters)
        return levels[levels < FULL_PRECISION] if pinned else levels

    def _place(self, k: FloatArray) -> NDArray[np.intp]:
        """The position of each row's k among the levels; one past the last for full precision where that is pinned."""
        pinned = any(parameter.one_at_full_precision for parameter in self.form.parameters)
        known = np.isin(k, self.levels) | (pinned & (k >= FULL_PRECISION))
        if not known.all():
            raise ValueError(
                f"k = {label(k[~known][0])} was not among the rows fitted; {', '.join(map(label, self.levels))} were"
            )
        return np.where(np.isin(k, self.levels), np.searchsorted(self.levels, k), len(self.levels))

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
        at_full_precision = np.zeros_like(values[..., :1])
        return np.concatenate([values, at_full_precision], axis=-1)[..., self._level_of_row]

    def log_terms(self, theta: NDArray[Any]) -> list[NDArray[Any]]:
        """The logarithm of each term, (..., n) or (..., 1), for theta (..., p)."""
        p = SimpleNamespace()
        for parameter in self.form.parameters:
            by_logarithm = parameter.positive or parameter.offset
            setattr(p, f"log_{parameter.name}" if by_logarithm else parameter.name, self._values(parameter, theta))
        return self.form.log_terms(self._x, p)

    def shares(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The logarithm of the prediction (..., n), and the part each term has in it (terms, ..., n)."""
        terms = np.stack([np.broadcast_to(term, (*theta.shape[:-1], self.rows)) for term in self.log_terms(theta)])
        highest = terms.max(axis=0)
        parts = np.exp(terms - highest)
        total = parts.sum(axis=0)
        return highest + np.log(total), parts / total

    def log_mean(self, theta: FloatArray) -> FloatArray:
        """The logarithm of the prediction, (..., n), by log-sum-exp."""
        return self.shares(theta)[0]

    def log_mean_and_jacobian(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The logarithm of the prediction (..., n) and its derivative by every parameter (..., p, n)."""
        log_mean, shares = self.shares(theta)
        steps = theta[..., None, :] + 1j * _COMPLEX_STEP * np.eye(len(self.names))  # (..., p, p)
        terms = self.log_terms(steps)
        parts = [share[..., None, :] * (term.imag / _COMPLEX_STEP) for share, term in zip(shares, terms, strict=True)]
        jacobian = np.sum(np.broadcast_arrays(*parts), axis=0)
        with np.errstate(over="ignore"):
            jacobian[..., self.offset, :] = np.exp(-log_mean)[..., None, :]  # holds at an offset of 0 too
        return log_mean, jacobian

    def log_columns(self) -> pd.DataFrame:
        """The logarithms of the columns other than k, (n, columns)."""
        return pd.DataFrame({name: getattr(self._x, f"log_{name}") for name in self.form.columns if name != "k"})

    def natural(self, theta: FloatArray) -> FloatArray:
        """Parameters as they are reported: positive ones taken back from their logarithms."""
        with np.errstate(over="ignore"):  # the end of a very wide interval
            return np.where(self.positive, np.exp(np.where(self.positive, theta, 0.0)), theta)

    def starts(self) -> FloatArray:
        """Starting vectors (m, p), a deterministic grid; the terms' factors are still 1."""
        if self.form.starts is None:
            return np.zeros((1, len(self.names)))
        values = self.form.starts(self._x)
        theta = np.zeros((len(next(iter(values.values()))), len(self.names)))
        for name, column in values.items():
            positions = self._slices[name]
            theta[:, positions] = (np.log(column) if self.positive[positions].all() else column)[:, None]
        return self.with_factors(theta, np.zeros(len(self.form.coefficients)))

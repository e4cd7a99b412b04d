"""What a law is: terms, parameters, the columns it reads and where its fit starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from kbitlib.laws.tables import FloatArray

Starts = dict[str, FloatArray]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law: positive ones are estimated on the log scale; ``by_k`` gives each k its own.

    An ``offset`` is a term by itself, E: estimated as it is, and allowed to be 0.
    """

    name: str
    positive: bool = False
    offset: bool = False
    by_k: bool = False
    one_at_full_precision: bool = False


@dataclass(frozen=True)
class Form:
    """A law: ``response`` = the sum of ``terms``, whose logarithms are ``log_terms(x, p)``.

    ``coefficients`` names the factor of each term, ``starts(x)`` gives starting values of the parameters that are no
    factor, ``linear`` says that the logarithm of the response is linear in the parameters as they are estimated.
    ``variant(present)`` is the law for a table that has only the ``present`` ones of its ``optional`` columns.
    """

    name: str
    terms: tuple[str, ...]
    source: str
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    log_terms: Callable[[SimpleNamespace, SimpleNamespace], list[Any]]
    coefficients: tuple[str, ...] = ()
    starts: Callable[[SimpleNamespace], Starts] | None = None
    linear: bool = False
    response: str = "loss"
    usual_loss: str = "log-squared"
    optional: tuple[str, ...] = ()
    variant: Callable[[tuple[str, ...]], Form] | None = None

    @property
    def formula(self) -> str:
        return f"{self.response} = {' + '.join(self.terms)}"

    @property
    def names_levels(self) -> bool:
        """Whether k does nothing but name levels, so that labels may stand for it."""
        return any(parameter.by_k for parameter in self.parameters)

    def for_columns(self, present: Collection[str]) -> Form:
        """The law without those of its optional columns that are not ``present``, and without their parameters."""
        if self.variant is None:
            return self
        return self.variant(tuple(name for name in self.optional if name in present))


def crossed(**values: tuple[float, ...]) -> Starts:
    """Every combination of the given values, one array a parameter."""
    combinations = np.array(list(product(*values.values())))
    return dict(zip(values, combinations.T, strict=True))

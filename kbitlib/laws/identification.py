"""Refuse a fit whose parameters the rows cannot determine, and say which combinations they do determine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kbitlib.laws.diagnostics import determined, diagnose, rank
from kbitlib.laws.forms import FULL_PRECISION
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray


class NotIdentified(ValueError):
    """The rows do not determine the parameters ``names``; ``identified`` says in words what they do determine."""

    def __init__(self, law: str, names: list[str], reason: str, identified: list[str]) -> None:
        self.names = names
        self.identified = identified
        found = "; ".join(identified) if identified else "nothing"
        super().__init__(f"{law}: {', '.join(names)} not identified: {reason}; identified: {found}")


def refuse_unidentified(surface: Surface, columns: Mapping[str, FloatArray]) -> None:
    """Raise NotIdentified for a flat direction: too few rows, a constant column, or collinear logarithms."""
    _refuse_scale_without_reference(surface, columns)
    theta = _generic(surface)
    design = surface.log_mean_and_jacobian(theta[None])[1][0].T  # (n, p)
    if rank(design) < design.shape[1]:
        if surface.form.linear:
            _refuse_linear(surface, design, columns)
        _refuse_terms(surface, design, theta, columns)
    if not surface.form.linear:
        _refuse_collinear_columns(surface)


def _generic(surface: Surface) -> FloatArray:
    """A parameter vector at which every term has about the same share."""
    starts = surface.starts()
    theta = starts[len(starts) // 2]
    if not surface.form.coefficients:
        return np.asarray(theta)
    return surface.with_factors(theta, np.array([-values.mean() for values in surface.log_terms(theta)]))


def _reason(surface: Surface, columns: Mapping[str, FloatArray]) -> str:
    rows, parameters = surface.rows, len(surface.names)
    if rows < parameters:
        return f"{rows} rows for {parameters} parameters"
    few = []
    for name in surface.form.columns:
        values = np.unique(columns[name])
        if len(values) < 3:
            few.append(f"{name} is {' or '.join(f'{value:g}' for value in values)} in every row")
    return " and ".join(few) if few else "the columns are collinear"


def _estimated_names(surface: Surface) -> list[str]:
    return [f"log {name}" if log else name for name, log in zip(surface.names, surface.positive, strict=True)]


def _refuse_linear(surface: Surface, design: FloatArray, columns: Mapping[str, FloatArray]) -> None:
    loose = [name for name, found in zip(surface.names, determined(design), strict=True) if not found]
    combinations = diagnose(pd.DataFrame(design, columns=_estimated_names(surface))).identified
    reason = _reason(surface, columns)
    raise NotIdentified(surface.form.name, loose, "; ".join([reason, *_relations(surface)]), combinations)


def _relations(surface: Surface) -> list[str]:
    """Exact relations among a constant and the logarithms of the columns, in words."""
    design = surface.log_columns().add_prefix("log ").assign(**{"1": 1.0})
    return [f"{combination} = 0 in every row".replace(" 1 = ", " = ") for combination in diagnose(design).undetermined]


def _refuse_terms(surface: Surface, design: FloatArray, theta: FloatArray, columns: Mapping[str, FloatArray]) -> None:
    found = determined(design)
    loose = [name for name, known in zip(surface.names, found, strict=True) if not known]
    identified = [name for name, known in zip(surface.names, found, strict=True) if known]
    combinations = rank(design) - sum(found)
    touched = [surface.form.terms[term] for term in _terms_of(surface, theta, np.flatnonzero(~np.array(found)))]
    if combinations == 1 and len(touched) > 1:
        identified.append(f"the sum {' + '.join(touched)}")
    elif combinations:
        identified.append(f"{combinations} combinations of {', '.join(loose)}")
    raise NotIdentified(surface.form.name, loose, _reason(surface, columns), identified)


def _terms_of(surface: Surface, theta: FloatArray, positions: NDArray[np.intp]) -> list[int]:
    """The terms that move with any of the parameters at ``positions``."""
    before = surface.log_terms(theta)
    moved = set()
    for position in positions:
        shifted = theta.copy()
        shifted[int(position)] += 0.1
        after = surface.log_terms(shifted)
        moved |= {
            i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not np.allclose(a, b, rtol=0, atol=1e-9)
        }
    return sorted(moved)


def _refuse_collinear_columns(surface: Surface) -> None:
    """One power law behind another: two terms of columns that move together cannot be told apart."""
    logs = surface.log_columns()
    if len(logs.columns) < 2 or diagnose(logs.assign(constant=1.0)).full_rank:
        return
    loose = [name for name, offset in zip(surface.names, surface.offset, strict=True) if not offset]
    along = f"the response where {' and '.join(logs.columns)} move together, not the share of each"
    raise NotIdentified(surface.form.name, loose, "; ".join(_relations(surface)), [along])


def _refuse_scale_without_reference(surface: Surface, columns: Mapping[str, FloatArray]) -> None:
    pinned = [parameter.name for parameter in surface.form.parameters if parameter.one_at_full_precision]
    if pinned and columns["k"].max() < FULL_PRECISION:
        factors = [name for name in surface.names if name.startswith(f"{pinned[0]}[")]
        raise NotIdentified(
            surface.form.name,
            ["A", *factors],
            f"no row is of full precision (k of {FULL_PRECISION} or more), where the factor is 1",
            ["E and alpha", f"the factors up to a common one ({pinned[0]}[k] / {factors[-1]})"],
        )

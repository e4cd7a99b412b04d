"""Refuse a fit whose parameters the rows cannot determine, and say which combinations they do determine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import null_space
from scipy.sparse.csgraph import connected_components

from kbitlib.laws.diagnostics import RANK_TOLERANCE, determined, diagnose, rank, variance_inflation
from kbitlib.laws.surface import Surface, label
from kbitlib.laws.tables import FULL_LABELS, FULL_PRECISION, FloatArray, Levels, full_precision


class NotIdentified(ValueError):
    """The rows do not determine the parameters ``names``; ``identified`` says in words what they do determine."""

    def __init__(self, law: str, names: list[str], reason: str, identified: list[str]) -> None:
        self.names = names
        self.identified = identified
        found = "; ".join(_first(identified)) if identified else "nothing"
        super().__init__(f"{law}: {', '.join(_first(names))} not identified: {reason}; identified: {found}")


def _first(words: list[str], most: int = 10) -> list[str]:
    """As many of them as one can read."""
    return words if len(words) <= most else [*words[:most], f"{len(words) - most} more"]


def refuse_constant_response(surface: Surface, observed: FloatArray) -> None:
    """Raise NotIdentified where the response is the same in every row: any exponent fits behind factors of 0."""
    if not surface.form.linear and np.ptp(observed) <= 1e-12 * np.abs(observed).max():
        loose = [name for name, offset in zip(surface.names, surface.offset, strict=True) if not offset]
        reason = f"{surface.form.response} is {observed[0]:g} in every row"
        raise NotIdentified(surface.form.name, loose, reason, ["the sum of all terms"])


def refuse_unidentified(surface: Surface, columns: Mapping[str, Levels]) -> None:
    """Raise NotIdentified for a flat direction: too few rows, a constant column, or collinear logarithms."""
    _refuse_scale_without_reference(surface, columns)
    if not surface.form.linear and surface.rows >= len(surface.names):
        _refuse_collinear_columns(surface)
    theta = _generic(surface)
    design = surface.log_mean_and_jacobian(theta[None])[1][0].T  # (n, p)
    if rank(design) < design.shape[1]:
        if surface.form.linear:
            _refuse_linear(surface, design, columns)
        _refuse_terms(surface, design, theta, columns)
    _refuse_constant_columns(surface)


def _generic(surface: Surface) -> FloatArray:
    """A parameter vector at which every term has about the same share."""
    starts = surface.starts()
    theta = starts[len(starts) // 2]
    if not surface.form.coefficients:
        return np.asarray(theta)
    return surface.with_factors(theta, np.array([-values.mean() for values in surface.log_terms(theta)]))


def _reason(surface: Surface, columns: Mapping[str, Levels]) -> str:
    rows, parameters = surface.rows, len(surface.names)
    if rows < parameters:
        return f"{rows} rows for {parameters} parameters"
    values = {name: np.unique(columns[name]) for name in surface.form.columns}
    fewest = min(map(len, values.values()))
    if fewest > (1 if surface.form.linear else 2):
        return "the columns are collinear"
    few = [f"{name} is {' or '.join(map(label, found))}" for name, found in values.items() if len(found) == fewest]
    return f"{' and '.join(few)} in every row"


def _estimated_names(surface: Surface) -> list[str]:
    return [f"log {name}" if log else name for name, log in zip(surface.names, surface.positive, strict=True)]


def _refuse_linear(surface: Surface, design: FloatArray, columns: Mapping[str, Levels]) -> None:
    loose = [name for name, found in zip(surface.names, determined(design), strict=True) if not found]
    combinations = diagnose(pd.DataFrame(design, columns=_estimated_names(surface))).identified
    reason = _reason(surface, columns)
    relations = _relations(surface.log_columns())
    raise NotIdentified(surface.form.name, loose, "; ".join([reason, *relations]), combinations)


def _relations(logs: pd.DataFrame) -> list[str]:
    """Exact relations among a constant and the logarithms of columns (n, columns), in words."""
    design = logs.add_prefix("log ").assign(**{"1": 1.0})
    return [f"{combination} = 0 in every row".replace(" 1 = ", " = ") for combination in diagnose(design).undetermined]


def _refuse_terms(surface: Surface, design: FloatArray, theta: FloatArray, columns: Mapping[str, Levels]) -> None:
    found = determined(design)
    loose = [name for name, known in zip(surface.names, found, strict=True) if not known]
    identified = [name for name, known in zip(surface.names, found, strict=True) if known]
    for block in _loose_together(design):
        identified.append(_what_is_left(surface, theta, block, rank(design[:, block])))
    raise NotIdentified(surface.form.name, loose, _reason(surface, columns), identified)


def _what_is_left(surface: Surface, theta: FloatArray, block: NDArray[np.intp], combinations: int) -> str:
    """What the rows tell of parameters, at the positions ``block``, of which they determine some combinations alone."""
    names = [surface.names[j] for j in block]
    terms = [surface.form.terms[term] for term in _terms_of(surface, theta, block)]
    if combinations == 1 and len(terms) > 1:
        return f"the sum {' + '.join(terms)}"
    factor_in = set(names) & set(surface.form.coefficients)
    if combinations == 1 and factor_in and len(surface.form.terms) > 1:
        return f"the term {terms[0]} as a whole"
    return f"{combinations or 'no'} {'combination' if combinations == 1 else 'combinations'} of {', '.join(names)}"


def _loose_together(design: FloatArray) -> list[NDArray[np.intp]]:
    """The positions of undetermined parameters, those in one array that may only move together."""
    lengths = np.linalg.norm(design, axis=0)
    null = null_space(design / np.where(lengths > 0, lengths, 1.0), rcond=RANK_TOLERANCE)
    tied = np.abs(null @ null.T) > 1e-9  # the projection on the null space
    blocks = connected_components(tied, directed=False)[1]
    return [np.flatnonzero(blocks == block) for block in np.unique(blocks[tied.any(axis=1)])]


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
    logs = surface.log_columns().loc[:, lambda columns: columns.nunique() > 1]
    if len(logs.columns) < 2:
        return
    inflation = variance_inflation(logs)
    moving = inflation.index[np.isinf(inflation)]
    if moving.empty:
        return
    along = f"the response where {' and '.join(moving)} move together, not the share of each"
    raise NotIdentified(surface.form.name, _not_offsets(surface), "; ".join(_relations(logs)), [along])


def _refuse_constant_columns(surface: Surface) -> None:
    """A column of one value, where a law's shape alone would tell of it: Kaplan's tokens from the curve over params."""
    logs = surface.log_columns()
    for column in logs.columns[logs.nunique() == 1]:
        reason = f"{column} is {np.exp(logs[column].iloc[0]):g} in every row"
        raise NotIdentified(surface.form.name, _not_offsets(surface), reason, [f"the response at this {column}"])


def _not_offsets(surface: Surface) -> list[str]:
    return [name for name, offset in zip(surface.names, surface.offset, strict=True) if not offset]


def _refuse_scale_without_reference(surface: Surface, columns: Mapping[str, Levels]) -> None:
    pinned = [parameter.name for parameter in surface.form.parameters if parameter.one_at_full_precision]
    if pinned and not full_precision(columns["k"]).any():
        factors = [name for name in surface.names if name.startswith(f"{pinned[0]}[")]
        others = [name for name in surface.names if name not in ("A", *factors)]
        raise NotIdentified(
            surface.form.name,
            ["A", *factors],
            f"no row is of full precision (k of {FULL_PRECISION} or more, or {', '.join(FULL_LABELS)}), where "
            "the factor is 1",
            [", ".join(others), f"the factors up to a common one ({pinned[0]}[k] / {factors[-1]})"],
        )

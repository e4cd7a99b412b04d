"""Fit a law to a table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kbitlib.laws.estimate import Loss, solve
from kbitlib.laws.forms import FORMS, Form
from kbitlib.laws.identification import refuse_constant_response, refuse_unidentified
from kbitlib.laws.results import LawResults
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray, column, numbers, read_columns, refuse_empty_or_repeated

MOST_LEVELS = 128  # of k or format with parameters of their own: more are a column taken for another


def fit(
    table: pd.DataFrame,
    law: str = "chinchilla",
    *,
    loss: str | None = None,
    columns: Mapping[str, str] | None = None,
    groups: str | None = "model",
    huber_delta: float = 1e-3,
    irreducible: float = 0.0,
) -> LawResults:
    """Fit a law to the rows of a table and return a result with statsmodels' manners.

    Args:
        table: one run a row; ``forms`` names the columns of each law (params, tokens, flops, total_bits are counts,
            k is in bits, loss and delta in nats a token).
        law: a name in ``FORMS``. ``kumar`` reads the bits of weights ``k``, of activations ``activation_bits``, of keys
            and values ``kv_bits``, all in training, and of weights quantized after it ``k_post``; those that the table
            lacks fall away, and so does ``degradation``'s power of ``tokens``.
        loss: ``huber`` (on residuals of the logarithms), ``log-squared`` or ``squared``; by default huber for
            chinchilla and log-squared for the others. A linear law by log-squared is ordinary least squares.
        columns: maps a standard name to the table's own, as in ``{"params": "params_nonemb"}``. Where k only names
            levels, as in total-bits, effective-parameters and frantar, it may stand for labels: ``{"k": "format"}``.
        groups: the column whose rows belong together (all of one model); where it is missing or never repeats, rows
            count as independent. It decides the kind of interval: see ``intervals``.
        huber_delta: where Huber's loss turns linear (Hoffmann et al. 2022, section 3.3: 1e-3).
        irreducible: a known loss E subtracted from the response of a linear law, in its unit.

    Raises:
        NotIdentified: (a ValueError) the rows cannot determine the parameters; it says which combinations they do.
        ValueError: an unknown law, loss or column; an empty table; a repeated row; a value not positive and finite.
    """
    form, names = _form(law), dict(columns or {})
    _check_names(form, names)
    how = Loss.named(form.usual_loss if loss is None else loss, huber_delta)
    refuse_empty_or_repeated(table)
    form = _for_table(form, table, names)
    values = read_columns(table, form.columns, names)
    may_be_negative = form.response == "delta" and not how.on_logs  # a quantized model may by chance be the better one
    observed = _observed(table, names.get(form.response, form.response), may_be_negative, form)
    response = pd.Series(observed, index=table.index)
    _check_irreducible(form, irreducible, response)
    surface = Surface(form, values)
    _refuse_many_levels(surface)
    refuse_unidentified(surface, values)
    refuse_constant_response(surface, observed)
    minimum = solve(surface, observed - irreducible, how)
    about = {"groups": _groups(table, groups), "seeds": table["seed"] if "seed" in table.columns else None}
    return LawResults(surface, response, how, minimum, columns=names, irreducible=irreducible, **about)


def _form(law: str) -> Form:
    if not isinstance(law, str) or law not in FORMS:
        raise ValueError(f"law {law!r} is unknown; {', '.join(FORMS)} are allowed")
    return FORMS[law]


def _observed(table: pd.DataFrame, name: str, may_be_negative: bool, form: Form) -> FloatArray:
    try:
        return numbers(table, name, positive=not may_be_negative)
    except ValueError as refusal:
        if form.response != "delta" or may_be_negative:
            raise
        raise ValueError(f"{refusal}; loss = 'squared' takes others, and so do rows of fewer bits") from None


def _refuse_many_levels(surface: Surface) -> None:
    count = len(surface.levels)
    if surface.form.names_levels and count > MOST_LEVELS:
        raise ValueError(f"k has {count} values, each with parameters of its own; {MOST_LEVELS} at most are allowed")


def _check_names(form: Form, names: Mapping[str, str]) -> None:
    used = (*form.columns, form.response)
    for name in names:
        if name not in used:
            raise ValueError(f"column {name!r} is not used by law {form.name}; it uses {', '.join(used)}")


def _for_table(form: Form, table: pd.DataFrame, names: Mapping[str, str]) -> Form:
    """The law with those of its optional columns that the table has and that do not already go by another name.

    ``tokens`` that are the same in every row do not count: their power is part of the factor.
    """
    taken = names.values()
    present = {name for name in form.optional if name in names or (name in table.columns and name not in taken)}
    if "tokens" in present and column(table, names.get("tokens", "tokens")).nunique() == 1:
        present.remove("tokens")
    return form.for_columns(present)


def _check_irreducible(form: Form, irreducible: float, response: pd.Series) -> None:
    if irreducible == 0:
        return
    if not form.linear:
        raise ValueError(f"irreducible is {irreducible}, but law {form.name} has its own E or none; 0 is allowed")
    if not (np.isfinite(irreducible) and 0 <= irreducible < response.min()):
        raise ValueError(
            f"irreducible is {irreducible}; from 0 to below the smallest loss, {response.min():g}, is allowed"
        )


def _groups(table: pd.DataFrame, name: str | None) -> pd.Series | None:
    if name is None or (name == "model" and name not in table.columns):
        return None
    members = column(table, name)
    return members if members.nunique() < len(members) else None

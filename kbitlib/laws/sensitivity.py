"""How far a fit rests on choices that could as well have been others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from kbitlib.laws.fit import fit
from kbitlib.laws.results import LawResults
from kbitlib.laws.tables import column, numbers

HUBER_DELTAS = (1e-4, 1e-3, 1e-2, 1e-1)
_COUNTS = {"params": ("params", "params_nonemb"), "total_bits": ("total_bits", "total_bits_all")}

Variant = tuple[str, str, pd.DataFrame, dict[str, Any]]


def sensitivity(table: pd.DataFrame, law: str = "chinchilla", *, by: str = "model", **options: Any) -> pd.DataFrame:
    """Fit a law again under other choices, one row each; the first row is the fit as asked for.

    The index names the ``choice`` (loss, rows, params, total_bits) and its ``value``: Huber's delta, and least squares
    on logarithms; each size in column ``by`` left out, where there is one; and, as far as the table has both columns,
    parameters with and without embeddings, and total bits of the quantized weights and of all. Columns: ``nobs``; the
    parameters; ``shift``, the largest change of one in standard errors of the first row (NaN where it has none, and
    where what is counted changes the parameters' meaning); and the ``reason`` where a choice leaves the law
    unidentified. ``options`` go to ``fit``; ValueError as there.
    """
    base = fit(table, law, **options)
    lines = {("as asked", ""): _line(base, base)}
    for choice, value, rows, changed in _variants(table, base, by, options):
        try:
            results = fit(rows, law, **(options | changed))
        except ValueError as refusal:
            lines[choice, value] = {"nobs": len(rows), "reason": str(refusal)}
            continue
        lines[choice, value] = _line(results, base, same_unit=choice in ("loss", "rows"))
    index = pd.MultiIndex.from_tuples(lines, names=["choice", "value"])
    return pd.DataFrame(list(lines.values()), index=index)


def _variants(table: pd.DataFrame, base: LawResults, by: str, options: dict[str, Any]) -> Iterator[Variant]:
    if base.loss.on_logs:
        for delta in HUBER_DELTAS:
            yield "loss", f"huber {delta:g}", table, {"loss": "huber", "huber_delta": delta}
        yield "loss", "log-squared", table, {"loss": "log-squared"}
    named = dict(options.get("columns") or {})
    first = base.surface.form.columns[0]
    if by in table:
        yield from _without_each_size(table, named.get(first, first), by)
    for standard, counts in _COUNTS.items():
        if standard in base.surface.form.columns and set(counts) <= set(table.columns):
            for name in counts:
                yield standard, name, table, {"columns": named | {standard: name}}


def _without_each_size(table: pd.DataFrame, measure: str, by: str) -> Iterator[Variant]:
    means = pd.Series(numbers(table, measure), index=table.index).groupby(column(table, by)).mean().sort_values()
    outermost = {means.index[0]: " (smallest)", means.index[-1]: " (largest)"}
    for size in means.index:
        yield "rows", f"without {size}{outermost.get(size, '')}", table[table[by] != size], {}


def _line(results: LawResults, base: LawResults, *, same_unit: bool = True) -> dict[str, Any]:
    error = np.sqrt(np.diag(base.uncertainty.covariance))
    change = (_estimates(results) - _estimates(base)).reindex(base.surface.names)
    shift = (change / error).abs().max() if same_unit else np.nan
    return {"nobs": results.nobs, **results.params, "shift": shift, "reason": ""}


def _estimates(results: LawResults) -> pd.Series:
    """Positive parameters by their logarithms."""
    return pd.Series(results.theta, index=results.surface.names)

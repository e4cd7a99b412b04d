"""What a table must hold before a law is fitted to it: every complaint names the column and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def refuse_empty_or_repeated(table: pd.DataFrame) -> None:
    """Raise ValueError for a table without rows, or with a row that stands there twice in every column."""
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"a {type(table).__name__} is not a table; a pandas DataFrame is allowed")
    if table.empty:
        raise ValueError("the table is empty; at least one row is needed")
    repeated = np.flatnonzero(table.duplicated().to_numpy())
    if repeated.size:
        raise ValueError(
            f"row {table.index[repeated[0]]} repeats an earlier row in every column ({repeated.size} such rows); "
            "each run may stand in the table once"
        )


def column(table: pd.DataFrame, name: str) -> pd.Series:
    """Column ``name`` of ``table``; ValueError if it is missing."""
    if name not in table.columns:
        raise ValueError(f"column {name!r} is missing; the table has {', '.join(map(str, table.columns))}")
    return table[name]


def numbers(table: pd.DataFrame, name: str, *, positive: bool = True) -> FloatArray:
    """Column ``name`` as (rows,) floats; ValueError if missing, not numeric, not finite or, if asked, not positive."""
    values = pd.to_numeric(column(table, name), errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(values) | ((values <= 0) if positive else False)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        allowed = "positive finite numbers" if positive else "finite numbers"
        raise ValueError(
            f"column {name!r} holds {table[name].iloc[row]} in row {table.index[row]}; only {allowed} are allowed"
        )
    return values


def read_columns(table: pd.DataFrame, needed: Sequence[str], names: Mapping[str, str]) -> dict[str, FloatArray]:
    """The ``needed`` columns as positive floats; ``names`` maps a standard name to the table's own."""
    return {standard: numbers(table, names.get(standard, standard)) for standard in needed}


def choose(table: pd.DataFrame, **choice: str | int | None) -> pd.DataFrame:
    """The rows whose columns have the values chosen (None: any); ValueError where there are none."""
    refuse_empty_or_repeated(table)
    rows = table
    for name, value in choice.items():
        if value is None:
            continue
        values = column(rows, name)
        found, rows = pd.unique(values), rows[values == value]
        if rows.empty:
            raise ValueError(f"no row of those chosen has {name} = {value!r}; {', '.join(map(str, found))} are there")
    return rows

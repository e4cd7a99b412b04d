"""What a table must hold before a law is fitted to it: every complaint names the column and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Levels = NDArray[Any]  # numbers of bits, or labels: names of formats

FULL_PRECISION = 16  # bits; weights of this many bits or more count as not quantized
FULL_LABELS = ("full", "fp32", "fp16", "bf16", "float32", "float16", "bfloat16")

_ALLOWED = {"gaussian_mse": (0.0, 1.0), "block": (1.0, np.inf)}  # a law takes logarithms of -log(MSE) and of log(block)


def refuse_empty_or_repeated(table: pd.DataFrame) -> None:
    """Raise ValueError for a table without rows, or with a row that stands there twice in every column."""
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"a {type(table).__name__} is not a table; a pandas DataFrame is allowed")
    if table.empty:
        raise ValueError("the table is empty; at least one row is needed")
    try:
        repeated = np.flatnonzero(table.duplicated().to_numpy())
    except TypeError:  # a column of lists
        repeated = np.flatnonzero(table.map(str).duplicated().to_numpy())
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


def numbers(
    table: pd.DataFrame, name: str, *, positive: bool = True, between: tuple[float, float] = (0.0, np.inf)
) -> FloatArray:
    """Column ``name`` as (rows,) floats.

    Raises ValueError if it is missing, not numeric, not finite or, with ``positive``, not between the two ends.
    """
    low, high = between if positive else (-np.inf, np.inf)
    values = pd.to_numeric(column(table, name), errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(values) | (values <= low) | (values >= high)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        allowed = f"only {_in_words(low, high)} are allowed"
        raise ValueError(f"column {name!r} holds {table[name].iloc[row]} in row {table.index[row]}; {allowed}")
    return values


def _in_words(low: float, high: float) -> str:
    if np.isfinite(high):
        return f"numbers between {low:g} and {high:g}"
    return {-np.inf: "finite numbers", 0.0: "positive finite numbers"}.get(low, f"finite numbers above {low:g}")


def levels(table: pd.DataFrame, name: str) -> Levels:
    """Column ``name`` as numbers of bits, or as labels where it holds text; 16 and more become the label ``full``.

    Raises ValueError for a value that is missing, and for labels beside a number of bits below 16.
    """
    values = column(table, name)
    bits = pd.to_numeric(values, errors="coerce")
    if (bits.notna() | values.isna()).all():
        return numbers(table, name)
    wrong = values.isna() | (bits < FULL_PRECISION)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"column {name!r} holds {values.iloc[row]} in row {table.index[row]} beside labels; only labels and "
            f"{FULL_PRECISION} bits or more are allowed there"
        )
    labels = values.astype(str).str.strip()
    labels = labels.mask(labels.str.lower().isin(FULL_LABELS), labels.str.lower()).mask(bits.notna(), "full")
    return np.array(labels, dtype=np.str_)


def is_labels(k: Levels) -> bool:
    """Whether these stand for k by name: text, not numbers."""
    return k.dtype.kind not in "fiu"


def full_precision(k: Levels) -> NDArray[np.bool_]:
    """Which of the numbers of bits or labels mean weights that are not quantized."""
    return np.asarray(np.isin(k, FULL_LABELS) if is_labels(k) else k >= FULL_PRECISION)


def read_columns(table: pd.DataFrame, needed: Sequence[str], names: Mapping[str, str]) -> dict[str, Levels]:
    """The ``needed`` columns as positive floats; ``names`` maps a standard name to the table's own.

    A column that stands for k may hold labels; ``gaussian_mse`` lies below 1 and ``block`` above 1.
    """
    read = {}
    for standard in needed:
        name = names.get(standard, standard)
        if standard == "k" and name != "k":
            read[standard] = levels(table, name)
        else:
            read[standard] = numbers(table, name, between=_ALLOWED.get(standard, (0.0, np.inf)))
    return read


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

"""A table from a file: CSV or Parquet, and the rows of it that are asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

_COUNT = "not in thousands, millions or billions"
# The least that the largest value of a column must reach, and the most that a value may be: no model of fewer than a
# thousand parameters or trained on fewer than a thousand tokens is a language model, and guessing among 256,000 tokens,
# the largest vocabulary in use, costs log 256,000 = 12.5 nats.
UNITS: dict[str, tuple[str, float, float, str]] = {
    "params": ("parameters", 1e3, float("inf"), _COUNT),
    "tokens": ("tokens", 1e3, float("inf"), _COUNT),
    "flops": ("floating point operations", 1e6, float("inf"), _COUNT),
    "total_bits": ("bits", 1e3, float("inf"), _COUNT),
    "loss": ("nats a token", 0.0, 12.5, "a perplexity goes by its logarithm"),
    "k": ("bits a weight", 0.0, 64.0, "not a number of levels"),
}


def read_table(path: str | Path, where: str | None = None) -> pd.DataFrame:
    """The rows of a CSV or Parquet file for which ``where``, in the syntax of pandas.query, holds.

    Raises ValueError for a file that is missing, not a table or of another kind, an expression that pandas cannot
    read, and one that no row fulfils.
    """
    table = _read(Path(path))
    if where is None:
        return table
    try:
        rows = table.query(where, local_dict={}, global_dict={})
    except Exception as error:  # pandas raises whatever the expression's own evaluation raises
        reason = str(error).splitlines()[0] if str(error) not in ("", "None") else "it is no condition on columns"
        raise ValueError(
            f"--where {where[:80]!r} cannot be read: {reason}; the table has {', '.join(map(str, table.columns))}"
        ) from None
    if not isinstance(rows, pd.DataFrame):
        raise ValueError(f'--where {where!r} does not choose rows; a condition, as in "k == 4", is allowed')
    if rows.empty:
        raise ValueError(f"--where {where!r} holds for none of the {len(table)} rows")
    return rows


def _read(path: Path) -> pd.DataFrame:
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {str(path)!r}")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{str(path)!r} ends in {path.suffix!r}; .csv and .parquet are allowed")
    try:
        table = _read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except Exception as error:  # the two readers raise errors of many kinds, all about the file's content
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{str(path)!r} cannot be read as a table: {reason}") from None
    if table.empty:
        raise ValueError(f"{str(path)!r} holds no row; at least one is needed")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with commas, every row as long as its header: pandas would shift longer ones and rename columns."""
    names = [str(name).strip() for name in pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two columns are named {twice[0]!r}; each name is allowed once")
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise ValueError("its columns are not separated by commas")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(path, index_col=False, names=names, skiprows=1)
        except pd.errors.ParserWarning:
            raise ValueError(f"a row has more fields than the {len(names)} of the header") from None


def refuse_other_units(table: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Raise ValueError for a standard column that is not in its unit: counts in millions, a perplexity in place of
    a loss in nats a token, a number of levels in place of bits.

    ``columns`` maps a standard name to the table's own. Only what cannot be otherwise is refused.
    """
    for name, (unit, low, high, hint) in UNITS.items():
        own = columns.get(name, name)
        values = pd.to_numeric(table[own], errors="coerce") if own in table.columns else pd.Series(dtype=float)
        wrong = values[values > (high if values.max() >= low else 0)]
        if len(wrong):
            row = wrong.index[0]
            raise ValueError(f"column {own!r} holds {wrong[row]:g} in row {row}, but {name} is in {unit}: {hint}")
        if name == "loss" and own.lower() in ("ppl", "perplexity"):
            raise ValueError(f"column {own!r} is a perplexity by its name, but {name} is in {unit}: {hint}")

"""A table from a file: CSV or Parquet, and the rows of it that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

_COUNT = (1.0, float("inf"), "not in thousands, millions or billions")
UNITS: dict[str, tuple[str, float, float, str]] = {
    "params": ("parameters", *_COUNT),
    "tokens": ("tokens", *_COUNT),
    "flops": ("floating point operations", *_COUNT),
    "total_bits": ("bits", *_COUNT),
    # Guessing among 256,000 tokens, the largest vocabulary in use, costs log 256,000 = 12.5 nats.
    "loss": ("nats a token", 0.0, 20.0, "a perplexity goes by its logarithm"),
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
        rows = table.query(where)
    except Exception as error:  # pandas raises whatever the expression's own evaluation raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"--where {where!r} cannot be read: {reason}; the table has {', '.join(map(str, table.columns))}"
        ) from None
    if not isinstance(rows, pd.DataFrame):
        raise ValueError(f'--where {where!r} does not choose rows; a condition, as in "k == 4", is allowed')
    if rows.empty:
        raise ValueError(f"--where {where!r} holds for none of the {len(table)} rows")
    return rows


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{str(path)!r} ends in {path.suffix!r}; .csv and .parquet are allowed")
    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except Exception as error:  # the two readers raise errors of many kinds, all about the file's content
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{str(path)!r} cannot be read as a table: {reason}") from None
    if table.empty:
        raise ValueError(f"{str(path)!r} holds no row; at least one is needed")
    if twice := [str(name) for name in table.columns[table.columns.duplicated()]]:
        raise ValueError(f"{str(path)!r} has two columns {twice[0]!r}; each name is allowed once")
    return table


def refuse_other_units(table: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Raise ValueError for a standard column that is not in its unit: a count below 1, a perplexity in place of
    a loss in nats a token, a number of levels in place of bits.

    ``columns`` maps a standard name to the table's own. Only what cannot be otherwise is refused.
    """
    for name, (unit, low, high, hint) in UNITS.items():
        own = columns.get(name, name)
        values = pd.to_numeric(table[own], errors="coerce") if own in table.columns else pd.Series(dtype=float)
        wrong = values[(values > 0) & ((values < low) | (values > high))]
        if len(wrong):
            row = wrong.index[0]
            raise ValueError(f"column {own!r} holds {wrong[row]:g} in row {row}, but {name} is in {unit}: {hint}")

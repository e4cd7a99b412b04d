"""A table from a file, and what is refused of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws.files import read_table, refuse_other_units


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"params": [1e6, 2e6, 4e6], "k": [2, 4, 8], "loss": [3.0, 2.5, 2.25]})


@pytest.mark.parametrize("kind", ["csv", "parquet", "CSV"])
def test_csv_and_parquet_hold_the_same(table: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"runs.{kind}"
    table.to_parquet(path) if kind == "parquet" else table.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), table)
    assert list(read_table(path, "k < 8 and loss > 2.6").k) == [2]


@pytest.mark.parametrize(
    ("where", "words"),
    [("k == 3", "holds for none of the 3 rows"), ("width > 3", "width"), ("k ==", "cannot be read"), ("k + 1", "k")],
)
def test_an_expression_that_chooses_nothing_is_refused(
    table: pd.DataFrame, tmp_path: Path, where: str, words: str
) -> None:
    table.to_csv(path := tmp_path / "runs.csv", index=False)
    with pytest.raises(ValueError, match="--where") as told:
        read_table(path, where)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("runs.csv", "params,loss\n", "holds no row"),
        ("runs.csv", "", "cannot be read as a table"),
        ("runs.txt", "params,loss\n1,2\n", r"\.csv and \.parquet are allowed"),
        ("runs.parquet", "params,loss\n1,2\n", "cannot be read as a table"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file"):
        read_table(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("loss", 27.65, "loss is in nats a token: a perplexity goes by its logarithm"),
        ("k", 256, "k is in bits a weight: not a number of levels"),
    ],
)
def test_another_unit_is_refused_by_name(table: pd.DataFrame, column: str, value: float, words: str) -> None:
    refuse_other_units(table, {})
    wrong = table.astype(np.float64)
    wrong.loc[1, column] = value
    with pytest.raises(ValueError, match=f"{value:g} in row 1.*{words}"):
        refuse_other_units(wrong, {})
    with pytest.raises(ValueError, match=f"'own' holds {value:g}"):
        refuse_other_units(wrong.rename(columns={column: "own"}), {column: "own"})


def test_counts_in_millions_and_perplexities_by_name_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="params is in parameters: not in thousands, millions"):
        refuse_other_units(table.assign(params=table["params"] / 1e6), {})
    with pytest.raises(ValueError, match="'ppl' is a perplexity by its name"):
        refuse_other_units(table.rename(columns={"loss": "ppl"}), {"loss": "ppl"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("params,tokens,loss\n1e6,1e9,3.0,7\n2e6,1e9,2.9,7\n", "more fields than the 3 of the header"),
        ("params,params,loss\n1e6,2e6,3.0\n", "two columns are named 'params'"),
        ("params;tokens;loss\n1e6;2e6;3.0\n", "not separated by commas"),
    ],
)
def test_a_csv_that_pandas_would_mend_in_silence_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "runs.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / "runs.csv")


def test_an_expression_sees_the_table_alone(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_csv(path := tmp_path / "runs.csv", index=False)
    with pytest.raises(ValueError, match="cannot be read"):
        read_table(path, "loss > @pd.options.display.width")


def test_a_comma_at_the_end_of_rows_shifts_no_column(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n1e6,1e9,3.0,\n2e6,1e9,2.9,\n")
    assert read_table(tmp_path / "runs.csv")["params"].tolist() == [1e6, 2e6]

"""What a notebook shows: figures with their data and vector file beside them, and tables that can be read aloud."""

import html
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from kbitlib.report.mathml import convert_text
from kbitlib.report.svg import stand_alone
from kbitlib.runs.files import replace_file

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
NUMBER, WORD = "number", "word"  # classes of cells that are aligned by their last digit, and that are not to be broken
METADATA = "kbit"  # key of what the page shows around a figure or table, in the output's metadata

Format = str | Callable[[object], str]


def publish(
    figure: Figure, *, folder: Path, chapter: str, name: str, table: pd.DataFrame, alt: str, caption: str, records: str
) -> None:
    """Show a figure in the notebook and the report, with the table it plots and its vector file beside it.

    Writes `folder/figures/<chapter>-<name>.svg` (same figure, same bytes; legible alone, in light and dark) and `.csv`
    (the plotted table), displays the SVG and closes the figure.

    alt: what the figure shows, in words, for who cannot see it. caption: shown below it; may hold `$math$`.
    records: where the numbers come from, e.g. "records/quantization.csv, 812 rows". Cite it as `[...](#figure-<name>)`.

    Raises ValueError for an empty alt or caption, or a name or chapter not made of letters, digits, `-` and `_`.
    """
    for what, text in (("alt", alt), ("caption", caption)):
        if not text.strip():
            raise ValueError(f"{what} of figure {name!r} is empty: say in words what it shows")
    links = _links(chapter, name)
    drawing = stand_alone(_draw(figure, f"{chapter}-{name}"), alt)
    _write(folder / links["svg"], drawing)
    _write(folder / links["csv"], _csv(table))
    plt.close(figure)
    about = {"name": name, "alt": alt, "caption": caption, "records": records, **links}
    display({"image/svg+xml": drawing, "text/plain": alt}, raw=True, metadata={"image/svg+xml": {METADATA: about}})


def show_table(
    frame: pd.DataFrame,
    *,
    caption: str,
    formats: Mapping[str, Format] | None = None,
    folder: Path | None = None,
    chapter: str = "",
    name: str = "",
    records: str = "",
) -> None:
    """Show a table in the notebook and the report: headings to columns and rows, numbers aligned by their last digit.

    The first column names the rows; an index that is more than a count comes before it. formats: for a column either a
    format specification (`".3f"`) or a function from value to text; missing values show as a dash. With `name`, writes
    the unformatted table to `folder/figures/<chapter>-<name>.csv` and links it.

    Raises ValueError for an empty caption, a format of a column that is not there, or a name without folder or chapter.
    """
    formats = formats or {}
    frame = _flat(frame)
    if not caption.strip():
        raise ValueError(f"caption of table {name!r} is empty: say what it shows")
    for column in formats:
        if column not in frame.columns:
            raise ValueError(
                f"a format is given for column {column!r}: the columns are {', '.join(map(str, frame.columns))}"
            )
    about = {"name": name, "records": records}
    if name:
        if folder is None:
            raise ValueError(f"table {name!r} needs the report's folder to be written to")
        about["csv"] = _links(chapter, name)["csv"]
        _write(folder / about["csv"], _csv(frame))
    shown = _table(frame, caption, formats)
    display({"text/html": shown, "text/plain": frame.to_string()}, raw=True, metadata={"text/html": {METADATA: about}})


def _links(chapter: str, name: str) -> dict[str, str]:
    """Where a figure's files lie, relative to the report's folder, where the pages are."""
    for what, text in (("name", name), ("chapter", chapter)):
        if not NAME.fullmatch(text):
            raise ValueError(f"{what} {text!r} is not made of letters, digits, - and _ alone")
    return {kind: f"figures/{chapter}-{name}.{kind}" for kind in ("svg", "csv")}


def _draw(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    counted = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    return frame if counted else frame.reset_index()


def _csv(frame: pd.DataFrame) -> str:
    return _flat(frame).to_csv(index=False, lineterminator="\n")


def _write(path: Path, text: str) -> None:
    replace_file(path, text.encode(), path.parent)


def _table(frame: pd.DataFrame, caption: str, formats: Mapping[str, Format]) -> str:
    classes = {column: _class(frame[column]) for column in frame.columns}
    head = "".join(f'<th scope="col"{classes[column]}>{html.escape(str(column))}</th>' for column in frame.columns)
    rows = []
    for row in frame.itertuples(index=False):
        cells = []
        for position, (column, value) in enumerate(zip(frame.columns, row, strict=True)):
            tag, scope = ("td", "") if position else ("th", ' scope="row"')
            text = html.escape(_text(value, formats.get(column)))
            cells.append(f"<{tag}{scope}{classes[column]}>{text}</{tag}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = convert_text(caption, html.escape)
    body = "\n".join(rows)
    return f"<table>\n<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _class(column: pd.Series) -> str:
    if pd.api.types.is_numeric_dtype(column):
        return f' class="{NUMBER}"'
    return "" if column.astype(str).str.contains(r"\s").any() else f' class="{WORD}"'


def _text(value: object, how: Format | None) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    if how is None:
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return format(value, how) if isinstance(how, str) else how(value)

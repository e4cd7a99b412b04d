"""The text of a Hugging Face data set, through the optional package `datasets`, or a sentence why it cannot be had."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

TIMEOUT = 5  # seconds until the hub counts as out of reach; the library alone would retry for half a minute
_NAME = re.compile(
    r"(?:hf:(?P<bare>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)|(?P<owned>[A-Za-z0-9][\w.-]*/[\w.-]+))"
    r"(?::(?P<config>[\w.-]*))?(?::(?P<split>[\w.-]+(?:\[[\w.:%-]+\])?))?"
)


class DatasetName(NamedTuple):
    """A data set on the hub: `name`, and which of its configurations and splits."""

    name: str
    config: str | None
    split: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `owner/name` or `hf:name` with an optional `:config` and `:split`; None if `text` is neither."""
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        return cls(match["bare"] or match["owned"], match["config"] or None, match["split"] or "train")

    def __str__(self) -> str:
        return f"the Hugging Face data set {self.name!r} ({self.config or 'default'}, {self.split})"


def documents(dataset: DatasetName, maximum: int) -> list[tuple[str, bytes]]:
    """Fetch every row's text, from the network or the cache: a list of (row name, UTF-8 text).

    A row is a document. Where more than a tenth of the rows are empty, they are the lines of a running text, as in
    WikiText, and are joined to one document. Raises ValueError if the package is missing, the data set cannot be had
    within seconds, has no column of text, or holds more than `maximum` bytes.
    """
    rows = list(_rows(dataset, _load(dataset), maximum))
    empty = sum(not row.strip() for row in rows)
    if empty > len(rows) / 10:
        return [(dataset.name, b"".join(row if row.endswith(b"\n") else row + b"\n" for row in rows))]
    return [(f"{dataset.name}/{i:09d}", row) for i, row in enumerate(rows)]


def _load(dataset: DatasetName) -> Any:
    if find_spec("datasets") is None:
        raise ValueError(f"{dataset} needs the package datasets: pip install 'kbit-lab[hub]'.")
    reachable = _reachable()
    if not reachable:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported: use what is cached, or fail at once
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(dataset.name, dataset.config, split=dataset.split)
    except Exception as error:  # the library and the network fail in many ways; each is one sentence here
        why = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        if not reachable:
            why = f"the hub is out of reach and the cache does not hold it ({why})"
        raise ValueError(f"{dataset} cannot be had: {why}") from error


def _reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT):
            return True
    except urllib.error.HTTPError:  # an answer, though a refusal
        return True
    except (OSError, ValueError):
        return False


def _rows(dataset: DatasetName, table: Any, maximum: int) -> Iterator[bytes]:
    text_columns = [
        name for name, kind in table.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
    ]
    column = next((name for name in ("text", "content") if name in text_columns), None)
    if column is None and len(text_columns) == 1:
        column = text_columns[0]
    if column is None:
        raise ValueError(
            f"{dataset} needs a column 'text' or 'content', or a single column of strings, but has "
            f"{', '.join(table.column_names)}."
        )
    room = maximum
    for value in table[column]:
        text = (value or "").encode()
        room -= len(text)
        if room < 0:
            raise ValueError(
                f"{dataset} is too large: at most {maximum:,} bytes of text are allowed, as in the split 'train[:1%]'."
            )
        yield text

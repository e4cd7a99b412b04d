"""What a notebook opens with: its settings, checked, and ways to show and keep what it finds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from kbitlib.experiments.settings import CHAPTERS, check
from kbitlib.report import publish, show_table, theme
from kbitlib.report.figures import Format
from kbitlib.runs.files import replace_file
from kbitlib.runs.store import Store


class Chapter:
    """A chapter at work: ``settings`` from its parameters, its ``store``, and where its figures and records go."""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Check a notebook's parameters, given as its ``globals()``; raises ValueError in one sentence naming what is
        wrong."""
        self.name = name
        fields = CHAPTERS[name].model_fields
        self.settings: Any = check(name, {key: parameters[key] for key in fields if key in parameters})
        self.store: Store = self.settings.store
        self.folder = self.settings.folder
        theme.use()

    def say(self, text: str) -> None:
        """Show prose, in Markdown, whose numbers were computed."""
        display(Markdown(text))

    def figure(self, figure: Figure, name: str, table: pd.DataFrame, *, alt: str, caption: str, records: str) -> None:
        """Show a figure, with its data and vector file beside it."""
        about = {"alt": alt, "caption": caption, "records": records}
        publish(figure, folder=self.folder, chapter=self.name, name=name, table=table, **about)

    def table(
        self,
        frame: pd.DataFrame,
        caption: str,
        *,
        name: str = "",
        formats: Mapping[str, Format] | None = None,
        records: str = "",
    ) -> None:
        """Show a table; with a name, its CSV is kept."""
        where: dict[str, Any] = {"folder": self.folder, "chapter": self.name, "name": name} if name else {}
        show_table(frame, caption=caption, formats=formats, records=records, **where)

    def keep(self, table: pd.DataFrame, name: str) -> str:
        """Write ``records/NAME.csv`` for everyone to read; returns the line that cites it."""
        replace_file(
            self.folder / "records" / f"{name}.csv", table.to_csv(index=False).encode(), self.folder / "records"
        )
        return f"records/{name}.csv, {len(table)} rows"

    def answer(self, facts: Mapping[str, Any]) -> None:
        """Write what the report opens with, ``records/answer.json``."""
        text = json.dumps(facts, indent=1, sort_keys=True)
        replace_file(self.folder / "records" / "answer.json", text.encode(), self.folder / "records")


def as_sentences(warnings: Sequence[str]) -> str:
    """Clauses as sentences: ["no interval can be given"] is "No interval can be given."."""
    return " ".join(f"{clause[:1].upper()}{clause[1:].rstrip('.')}." for clause in warnings)

"""An executed notebook -> a page that opens from disk: no script, style, face or formula comes from elsewhere."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup
from nbconvert.exporters import TemplateExporter
from nbconvert.filters import Highlight2HTML, strip_ansi
from nbformat import NotebookNode
from traitlets.config import Config

from kbitlib.report.figures import METADATA
from kbitlib.report.markdown import Chapter
from kbitlib.report.page import FILTERS, GLOBALS, TEMPLATES, chapter_number, facts, write_page
from kbitlib.report.svg import inline

SHOWN_FIRST = ["image/svg+xml", "text/html", "text/markdown", "image/png", "image/jpeg", "text/latex", "text/plain"]
# Tags of cells that the table of parameters and the notice of a failure stand for.
SHOWN_OTHERWISE = {"parameters", "injected-parameters", "papermill-error-cell-tag"}
NO_ALT = "A figure without a description"


def render(
    notebook: Path,
    page: Path,
    *,
    defaults: Mapping[str, Any],
    parameters: Mapping[str, Any],
    provenance: Mapping[str, Any],
    chapters: Sequence[Mapping[str, Any]],
    status: Mapping[str, Any] | None = None,
) -> None:
    """Write the page of one chapter beside its figures, as `reports/P/<chapter>.html`.

    defaults, parameters: the notebook's own values and those of this run, by name; the table of parameters shows both,
    with the meaning from the comments in the cell tagged `parameters`.
    provenance: see `page.facts`. chapters: all of the report in order, each with `name` and `title`; the page's own is
    the one called as the page. status: the chapter's entry in `run.json` (see `site.build_index`).

    Raises ValueError for math that does not convert and for anything the page would load from elsewhere.
    """
    source = nbformat.read(notebook, as_version=4)
    prose = Chapter(number=chapter_number(page.stem), folder=notebook.parent)
    before, own, after = _neighbours(page.stem, chapters)
    resources = {
        "page": {
            "name": page.stem,
            "title": own.get("title", page.stem),
            "number": prose.number,
            "before": before,
            "after": after,
            "status": status or {},
            "parameters": parameter_rows(source, defaults, parameters),
            "facts": facts(provenance),
        }
    }
    try:
        text, _ = _exporter(prose).from_notebook_node(source, resources)
    except ValueError as error:
        raise ValueError(f"{notebook.name}: {error}") from error
    write_page(page, text)


def parameter_rows(
    notebook: NotebookNode, defaults: Mapping[str, Any], parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The table of parameters: name, meaning, default and value of this run (as JSON), and whether they differ."""
    cell = next((cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())), None)
    meanings = comments(cell.source) if cell else {}
    rows = []
    for name in dict.fromkeys([*defaults, *parameters]):
        default, value = defaults.get(name), parameters.get(name, defaults.get(name))
        rows.append(
            {
                "name": name,
                "meaning": meanings.get(name, ""),
                "default": _json(default) if name in defaults else "–",
                "value": _json(value),
                "differs": value != default,
            }
        )
    return rows


def comments(source: str) -> dict[str, str]:
    """What each assigned name means: `bits: int = 4  # bits per weight` -> {"bits": "bits per weight"}."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    meanings = {}
    for node in ast.parse(source).body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and node.end_lineno in by_line:
            meanings[target.id] = by_line[node.end_lineno]
    return meanings


def settle(text: str) -> str:
    """What a terminal would show in the end: colours gone, and of a line drawn over and over only its last state."""
    lines = strip_ansi(text).split("\n")
    return "\n".join(next((part for part in reversed(line.split("\r")) if part.strip()), "") for line in lines).strip(
        "\n"
    )


def summary(source: str) -> str:
    """What a folded piece of code is about: its first line if that is a comment, else its length."""
    first = source.strip().partition("\n")[0]
    lines = len(source.strip().splitlines())
    return first.lstrip("# ").rstrip(".") if first.startswith("#") else f"{lines} line{'' if lines == 1 else 's'}"


def _exporter(prose: Chapter) -> TemplateExporter:
    exporter = TemplateExporter(
        config=Config(NbConvertBase={"display_data_priority": SHOWN_FIRST}),
        extra_template_basedirs=[str(TEMPLATES.parent)],
        template_name=TEMPLATES.name,
        template_file="chapter.html.j2",
        filters={
            **FILTERS,
            "markdown": lambda text, attachments=None: Markup(prose.convert(text, attachments)),
            "highlight_code": lambda text: Markup(Highlight2HTML(pygments_lexer="ipython3")(text)),
            "settle": settle,
            "summary": summary,
            "figure": lambda output, kind: _about(output, kind, prose),
            "inline_svg": lambda drawing, id, alt: Markup(inline(drawing, f"{id}-", alt)),
            "table": lambda output: Markup(_table(output, prose)),
        },
    )
    exporter.environment.autoescape = True
    exporter.environment.trim_blocks = exporter.environment.lstrip_blocks = True
    exporter.environment.globals.update(GLOBALS, prose=prose, shown_otherwise=SHOWN_OTHERWISE)
    return exporter


def _neighbours(name: str, chapters: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The chapters before, at and after a name; an empty one where there is none."""
    names = [chapter["name"] for chapter in chapters]
    here = names.index(name) if name in names else -1
    return tuple(chapters[n] if here >= 0 and 0 <= n < len(chapters) else {} for n in (here - 1, here, here + 1))


def _about(output: NotebookNode, kind: str, prose: Chapter) -> dict[str, Any]:
    """What stands around a figure, and its id and number; one that was not published has neither caption nor files."""
    shown = output.metadata.get(kind, {})
    about = dict(shown.get(METADATA, {}))
    about["alt"] = about.get("alt") or shown.get("alt") or NO_ALT
    about["id"] = prose.unique(f"figure-{about['name']}" if about.get("name") else "figure")
    about["number"] = prose.count("figure")
    about["caption"] = re.sub(r"^<p>|</p>$", "", prose.convert(about.get("caption", "")).strip())
    return about


def _table(output: NotebookNode, prose: Chapter) -> str:
    """HTML that a cell shows; tables of `show_table` get their number, pandas' own lose a style that outlives them."""
    about = output.metadata.get("text/html", {}).get(METADATA)
    text = re.sub(r"(?s)<style scoped>.*?</style>", "", output.data["text/html"])
    if about is None:
        return text
    id = prose.unique(f"table-{about['name']}" if about["name"] else "table")
    number = f'<span class="label">Table {prose.count("table")}</span> '
    return text.replace("<table>", f'<table id="{id}">', 1).replace("<caption>", f"<caption>{number}", 1)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

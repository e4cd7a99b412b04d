"""What all pages share: templates, the footer's facts, and the check that a page needs nothing but itself."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from kbitlib.report import numbers
from kbitlib.report.theme import INKS, PAPERS
from kbitlib.runs.files import replace_file

TEMPLATES = Path(__file__).parent / "templates"

STATUS = {"done": "done", "failed": "failed", "running": "running", "stale": "stale", "never": "never run"}

FILTERS = {
    "count": numbers.count,
    "duration": numbers.duration,
    "file_size": numbers.file_size,
    "moment": numbers.moment,
    "percent": numbers.percent,
    "short": numbers.short,
    "significant": numbers.significant,
}
GLOBALS = {"papers": PAPERS, "inks": INKS, "status_words": STATUS}

LOADING = {"src", "srcset", "poster", "data", "background", "action", "formaction"}
LOADING_BY_HREF = {"link", "image", "use", "feimage", "base"}
OWN = re.compile(r"\s*(data:|#|$)")
STYLE_LOADS = re.compile(r"url\(\s*['\"]?(?!data:|#)|@import")


def environment() -> Environment:
    """The templates of pages that are not made from a notebook."""
    made = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(FILTERS)
    made.globals.update(GLOBALS)
    return made


def chapter_number(name: str) -> str:
    """The number a chapter's name begins with: "04_scaling_regression" -> "4"; empty when there is none."""
    number = re.match(r"0*(\d+)", name)
    return number[1] if number else ""


def write_page(path: Path, text: str) -> None:
    """Put a page in its place, unless it would load something when opened: then ValueError names it."""
    address = external(text)
    if address:
        raise ValueError(
            f"{path.name} would load {address!r}: a page of the report stands alone, so embed it or link to it"
        )
    replace_file(path, text.encode(), path.parent)


def external(text: str) -> str:
    """The first address that opening this page would load; empty when it needs nothing but itself."""
    scan = _Loads()
    scan.feed(text)
    return scan.found


class _Loads(HTMLParser):
    found = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in LOADING or (name in ("href", "xlink:href") and tag in LOADING_BY_HREF)
            if loads and not OWN.match(value or ""):
                self.found = self.found or (value or "")
            if name == "style":
                self.handle_style(value or "")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.handle_style(data)

    def handle_style(self, style: str) -> None:
        loads = STYLE_LOADS.search(style)
        self.found = self.found or (style[loads.start() : loads.start() + 80] if loads else "")


def facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The footer: what a reader needs to make the page again, as (name, value), what is not known left out.

    Takes the keys of `runs.provenance()` and, where known, data (hash of the corpus), seed, seconds (wall time) and
    compute_seconds (time of all jobs, read or computed). Keys beyond these follow as they are.
    """
    rest = {key: value for key, value in provenance.items() if value is not None and value != ""}
    dirty = " with uncommitted changes" if rest.pop("dirty", False) else ""
    memory = rest.pop("memory_gb", None)
    packages: dict[str, Any] = rest.pop("packages", {})
    hardware = [
        rest.pop("cpu", ""),
        f"{rest.pop('cores')} cores" if "cores" in rest else "",
        f"{memory:g} GB memory" if memory else "",
        rest.pop("gpu", "") or ("no GPU" if "gpu" in provenance else ""),
    ]
    versions = [("kbitlib", rest.pop("kbitlib", "")), ("Python", rest.pop("python", "")), *packages.items()]
    named = [
        ("Command", rest.pop("command", "")),
        ("Run", numbers.moment(rest.pop("started")) if "started" in rest else ""),
        ("Wall time", numbers.duration(rest.pop("seconds")) if "seconds" in rest else ""),
        ("Compute time", numbers.duration(rest.pop("compute_seconds")) if "compute_seconds" in rest else ""),
        ("Commit", rest.pop("commit", "") and f"{provenance['commit']}{dirty}"),
        ("Data", rest.pop("data", "")),
        ("Seed", str(rest.pop("seed", ""))),
        ("Hardware", ", ".join(filter(None, hardware))),
        ("System", rest.pop("platform", "")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions if version)),
        *((key.replace("_", " ").capitalize(), str(value)) for key, value in rest.items()),
    ]
    return [(name, value) for name, value in named if value]

"""The first page of a report, which opens with the answer, and the report as one file to hand on."""

import csv
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kbitlib.report.numbers import bits, count, percent
from kbitlib.report.page import chapter_number, environment, facts, write_page
from kbitlib.report.svg import inline, label_of

BUNDLE = "report.zip"
BUNDLE_LINK = re.compile(r"(?s)<!-- bundle -->.*?<!-- end -->\n?")  # a copy inside the bundle cannot link to it
LARGEST = 20 << 20  # bytes of a table that still goes into the bundle
WHEN_ZIPPED = (2000, 1, 1, 0, 0, 0)  # same pages, same bytes


def build_index(
    folder: Path,
    *,
    profile: str,
    chapters: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any] | None,
    status: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write `folder/index.html`: the answer, the chapters and their status, times, records, corpus and provenance.

    chapters: in order, each `{"name", "title", "summary"}`; a page `<name>.html` in the folder is linked.
    provenance: see `page.facts`.

    status, as it stands in `run.json`; every part but `chapters` may be missing:

        {"chapters": {name: {"status": "done" | "failed" | "running" | "stale" | "never", "started": ISO 8601,
                             "seconds": wall time, "compute_seconds": time of its jobs, computed now or read,
                             "error": one sentence, or None}},
         "stages": [{"name": "family", "records": 96, "compute_seconds": 604.0}],
         "store": {"bytes": 91234567, "records": 1012, "failed": 0, "stale": 0},
         "corpus": {"source": "installed", "sha256": "5f2b...", "expected": "5f2b..." | None}}

    answer, or None while there is none; ties, interval, handovers, figure, caption and notes may be missing:

        {"k": 4, "ties": [5], "share": 0.78, "interval": [0.61, 0.93], "level": 0.95, "range": [6e4, 9.5e6],
         "handovers": [{"from": 5, "to": 4, "total_bits": 9.1e5, "interval": [6e5, 1.4e6]}],
         "models": 14, "records": 812, "date": "2026-03-01",
         "chapter": "04_scaling_regression", "figure": "figures/04_scaling_regression-best_k.svg",
         "caption": "...", "notes": ["a sentence", ...]}
    """
    stated = [
        {**chapter, **status.get("chapters", {}).get(chapter["name"], {"status": "never"})} for chapter in chapters
    ]
    for chapter in stated:
        chapter["number"] = chapter_number(chapter["name"])
        chapter["page"] = f"{chapter['name']}.html" if (folder / f"{chapter['name']}.html").exists() else None
    page = environment().get_template("index.html.j2")
    text = page.render(
        profile=profile,
        chapters=stated,
        answer=answer,
        headline=headline(answer),
        sentences=sentences(answer) if answer else [],
        figure=_figure(folder, answer),
        status=status,
        corpus=corpus_sentence(status["corpus"]) if status.get("corpus") else "",
        tables=_tables(folder),
        facts=facts(provenance),
        bundle=BUNDLE,
    )
    write_page(folder / "index.html", text)


def headline(answer: Mapping[str, Any] | None) -> str:
    """The answer in a few words."""
    if answer is None:
        return "There is no answer yet"
    k, ties = answer["k"], sorted(answer.get("ties", ()))
    best = f"At equal memory, {bits(k)} a weight {'is' if k == 1 else 'are'} best"
    return f"{best}, in a tie with {_list(ties)}" if ties else best


def sentences(answer: Mapping[str, Any]) -> list[str]:
    """The answer in full: share of the range with its interval, and where one k hands over to the next."""
    low, high = answer["range"]
    k, level = answer["k"], f"{percent(answer.get('level', 0.95))} interval"
    within = (
        f" ({level} {percent(answer['interval'][0])} to {percent(answer['interval'][1])})"
        if "interval" in answer
        else ""
    )
    text = [
        f"Between {count(low)} and {count(high)} bits for the quantized weights, k = {k} has the lowest loss over "
        f"{percent(answer['share'])} of the range{within}."
    ]
    tied = {k, *answer.get("ties", ())}
    for change in answer.get("handovers", ()):
        if {change["from"], change["to"]} <= tied:  # where two are a tie, which is lower at some budget is chance
            continue
        ends = change.get("interval")
        within = f" ({level} {count(ends[0])} to {count(ends[1])})" if ends else ""
        text.append(
            f"The best choice changes from {change['from']} to {change['to']} bits a weight "
            f"at {count(change['total_bits'])} bits in all{within}."
        )
    if answer.get("ties"):
        text.append(
            f"The differences between {_list(sorted([k, *answer['ties']]))} bits are within the noise of training."
        )
    return [*text, *answer.get("notes", ())]


def corpus_sentence(corpus: Mapping[str, Any]) -> str:
    """What the family was trained on, and whether it is the text that every installation should have."""
    name, digest, expected = corpus["source"], corpus["sha256"][:16], (corpus.get("expected") or "")[:16]
    if not expected:
        return f"Corpus “{name}”: sha256 {digest}…"
    if digest == expected:
        return f"Corpus “{name}”: the same text on every machine, sha256 {digest}… as expected."
    return f"Corpus “{name}”: its text differs from the expected one, sha256 {digest}… instead of {expected}…"


def bundle(folder: Path) -> Path:
    """Zip the pages, figures and records of a report, to be opened anywhere; returns the path of the file.

    Leaves out notebooks, the store, and tables over 20 MiB. Same report, same bytes.
    """
    path = folder / BUNDLE
    part = path.with_suffix(".part")
    files = [
        *folder.glob("*.html"),
        *folder.glob("run.json"),
        *folder.glob("figures/*.*"),
        *folder.glob("records/*.csv"),
    ]
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files):
            content = file.read_bytes()
            if file.suffix == ".html":
                content = BUNDLE_LINK.sub("", content.decode()).encode()
            if len(content) <= LARGEST:
                name = f"{folder.name}/{file.relative_to(folder).as_posix()}"
                archive.writestr(zipfile.ZipInfo(name, WHEN_ZIPPED), content, zipfile.ZIP_DEFLATED)
    part.replace(path)
    return path


def _figure(folder: Path, answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The headline figure, inlined, with its links; empty when there is none."""
    path = folder / answer["figure"] if answer and answer.get("figure") else None
    if answer is None or path is None or not path.exists():
        return {}
    drawing = path.read_text(encoding="utf-8")
    data = path.with_suffix(".csv")
    return {
        "drawing": Markup(inline(drawing, "headline-", label_of(drawing))),
        "svg": answer["figure"],
        "csv": data.relative_to(folder).as_posix() if data.exists() else None,
        "caption": answer.get("caption", ""),
    }


def _tables(folder: Path) -> list[dict[str, Any]]:
    """The tables of records: name, path, number of rows and size."""
    found = []
    for path in sorted((folder / "records").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = max(sum(1 for _ in csv.reader(file)) - 1, 0)
        found.append({"name": path.stem, "path": f"records/{path.name}", "rows": rows, "bytes": path.stat().st_size})
    return found


def _list(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))

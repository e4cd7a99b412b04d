"""A profile's chapters, run by Papermill and rendered to pages that open from disk."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import nbformat

from kbitlib.data.corpus import EXPECTED_SHA256
from kbitlib.experiments.plan import plan
from kbitlib.experiments.settings import NOTEBOOKS, Common, check, parameters
from kbitlib.report.numbers import duration
from kbitlib.runs.files import replace_file, sha256
from kbitlib.runs.provenance import provenance
from kbitlib.runs.store import Store

STAGES = {
    "corpus.prepare": "corpus",
    "trainer.train": "training",
    "quantization.quantize_member": "quantization",
    "finetuning.tune_member": "fine-tuning",
    "timing.time_quantization": "timing",
    "timing.time_products": "timing of products",
    "timing.time_generation": "timing of models",
}
Say = Callable[[str], None]


def chapter_titles(names: list[str]) -> list[dict[str, str]]:
    """Name, title and first paragraph of each chapter, as its notebook has them."""
    found = []
    for name in names:
        source = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells[0].source
        title, _, rest = source.partition("\n")
        summary = rest.strip().split("\n\n")[0].replace("\n", " ")
        found.append({"name": name, "title": title.lstrip("# "), "summary": summary})
    return found


def run_chapters(chosen: Mapping[str, Common], every: Mapping[str, Common], say: Say) -> list[str]:
    """Execute and render the chosen chapters, then the index over all; returns the names of those that failed.

    A chapter that would do the same again, with the same library, is rendered from its last run. One that fails leaves
    its page, with the error in it, and the others go on. What happened stands in
    ``run.json``,
    written whole after each change, since a notebook left by a killed run still calls itself completed.
    """
    folder = next(iter(chosen.values())).folder
    titles = chapter_titles(list(every))
    failed = []
    for number, (name, settings) in enumerate(chosen.items(), start=1):
        say(f"[{number}/{len(chosen)}] {name}")
        executed, last = folder / "notebooks" / f"{name}.ipynb", read_notes(folder).get(name, {})
        if last.get("library") == library_digest() and executed.is_file() and is_current(name, settings, last):
            render_chapter(name, settings, executed, titles, last)
            say(f"[{number}/{len(chosen)}] {name}: unchanged since {last['started']}")
            continue
        entry: dict[str, Any] = {
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": None,
        }
        note(folder, name, entry)
        began = time.perf_counter()
        entry["error"] = execute(name, settings, executed)
        entry["status"] = "failed" if entry["error"] else "done"
        entry["seconds"] = time.perf_counter() - began
        entry["compute_seconds"] = sum(record.seconds for record in settings.store.status(plan(settings)).done)
        about = {**provenance(), "data": settings.corpus_settings.content, "seed": seeds(settings)}
        about |= {"seconds": entry["seconds"], "compute_seconds": entry["compute_seconds"], "started": entry["started"]}
        entry["provenance"] = about
        entry["parameters"] = settings.model_dump()
        entry["notebook"] = sha256(NOTEBOOKS / f"{name}.ipynb")
        entry["library"] = library_digest()
        render_chapter(name, settings, executed, titles, entry)
        note(folder, name, entry)
        say(f"[{number}/{len(chosen)}] {name}: {entry['status']} in {duration(entry['seconds'])}")
        if entry["error"]:
            say(f"    {entry['error']}")
            failed.append(name)
    write_index(folder, every, titles)
    return failed


def execute(name: str, settings: Common, executed: Path) -> str | None:
    """Run one notebook with Papermill, keeping the executed copy; returns None, or what went wrong in one line."""
    from papermill import PapermillExecutionError, execute_notebook

    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Papermill and nbformat about each other
            execute_notebook(
                NOTEBOOKS / f"{name}.ipynb",
                executed,
                parameters=settings.model_dump(),
                kernel_name="python3",
                progress_bar=False,
                start_timeout=300,
                extra_arguments=["--IPKernelApp.log_level=50"],  # its warnings are about networks; this one is local
            )
    except PapermillExecutionError as error:
        lines = [line.strip() for line in f"{error.ename}: {error.evalue}".splitlines() if line.strip()]
        return " ".join(lines[:2])  # the second line of a sweep's error is its first cause
    except RuntimeError:
        return "the kernel died, most often because memory ran out"
    return None


def render_chapter(
    name: str, settings: Common, executed: Path, titles: list[dict[str, str]], entry: Mapping[str, Any]
) -> None:
    from kbitlib.report.export import render

    shown = {key: entry[key] for key in ("status", "error")}
    render(
        executed,
        settings.folder / f"{name}.html",
        defaults=check(name, parameters("smoke", name, {})).model_dump(),
        parameters=settings.model_dump(),
        provenance=entry["provenance"],
        chapters=titles,
        status=shown,
    )


def seeds(settings: Common) -> str:
    """The seeds in words: each size is trained with seeds 0, 1, ... up to its number."""
    return f"0 to {max(settings.seeds) - 1}" if max(settings.seeds) > 1 else "0"


def read_notes(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says of each chapter; empty where there is none or it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        notes: dict[str, Any] = json.loads((folder / "run.json").read_bytes())["chapters"]
        return notes
    return {}


def note(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Write what is known of a chapter into ``run.json``, whole or not at all."""
    chapters = {**read_notes(folder), name: dict(entry)}
    replace_file(folder / "run.json", json.dumps({"chapters": chapters}, indent=1).encode(), folder)


def write_index(folder: Path, every: Mapping[str, Common], titles: list[dict[str, str]]) -> None:
    """Write the first page: the answer, then what is done, failed, stale or never run."""
    from kbitlib.report.site import build_index, bundle

    settings = next(iter(every.values()))
    answer = folder / "records" / "answer.json"
    build_index(
        folder,
        profile=settings.profile,
        chapters=titles,
        answer=json.loads(answer.read_bytes()) if answer.exists() else None,
        status=report_status(every),
        provenance={**provenance(), "data": settings.corpus_settings.content, "seed": seeds(settings)},
    )
    bundle(folder)


@cache
def library_digest() -> str:
    """The sha256 over all source files of the library."""
    package = Path(__file__).resolve().parents[1]
    files = sorted(path for suffix in ("*.py", "*.c") for path in package.rglob(suffix))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def is_current(name: str, settings: Common, entry: Mapping[str, Any]) -> bool:
    """Whether a chapter that was done would say the same today."""
    same = entry.get("status") == "done" and (entry.get("parameters"), entry.get("notebook")) == (
        settings.model_dump(),
        sha256(NOTEBOOKS / f"{name}.ipynb"),
    )
    return same and not settings.store.status(plan(settings)).never


def report_status(every: Mapping[str, Common]) -> dict[str, Any]:
    """The state of a profile: of each chapter and each step, of the store and of the corpus.

    A chapter that ran is stale when its notebook, its parameters or the records it rests on are no longer those.
    """
    first = next(iter(every.values()))
    store: Store = first.store
    notes = read_notes(first.folder)
    chapters: dict[str, Any] = {}
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, settings in every.items():
        own = plan(settings)
        pairs |= {store.key(step, value): (step, value) for step, value in own}
        chapters[name] = notes.get(name, {"status": "never"})
        if chapters[name]["status"] == "done" and not is_current(name, settings, chapters[name]):
            chapters[name] = chapters[name] | {"status": "stale"}
    status = store.status(list(pairs.values()))
    stages: dict[str, dict[str, Any]] = {}
    for record in status.done:
        stage = stages.setdefault(record.step, {"name": STAGES[record.step], "records": 0, "compute_seconds": 0.0})
        stage["records"] += 1
        stage["compute_seconds"] += record.seconds
    return {
        "chapters": chapters,
        "stages": list(stages.values()),
        "store": {
            "bytes": status.size,
            "records": len(status.done),
            "failed": len(status.failed),
            "stale": len(status.stale),
            "never": len(status.never),
        },
        "corpus": {
            "source": first.corpus,
            "sha256": first.corpus_settings.content,
            "expected": EXPECTED_SHA256 if first.corpus == "installed" else None,
        },
    }

"""`kbit run` and `kbit status`: chapters by a profile."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kbitlib.cli.options import as_json, require_cuda


@click.command()
@click.argument("chapters", nargs=-1, metavar="[CHAPTER]...")
@click.option("--profile", required=True, help="A profile in params/: smoke, laptop or gpu.")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter, its value as JSON.")
@click.option("--engine", help="local (a process a core), serial, or a Dask scheduler, tcp://host:port.")
@click.option("--wait", is_flag=True, help="If another run holds the store, wait for it rather than leave.")
def run(
    chapters: tuple[str, ...], profile: str, given: tuple[tuple[str, str], ...], engine: str | None, wait: bool
) -> None:
    """Run chapters (all by default) with a profile, and write its report."""
    from kbitlib.experiments.runner import run_chapters

    values = {name: parse(name, value) for name, value in given} | ({"engine": engine} if engine else {})
    every = profile_settings(profile, values, chapters)
    chosen = {name: every[name] for name in every if not chapters or name in chapters}
    first = next(iter(chosen.values()))
    with first.store.lock(wait=wait), shown_progress(first.store.root):
        failed = run_chapters(chosen, every, click.echo)
    click.echo(f"report: {relative(first.folder / 'index.html')}")
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(chosen)} chapters failed: {', '.join(failed)}")


@click.command()
@click.option("--profile", default="laptop", show_default=True)
@as_json
def status(profile: str, as_json: bool) -> None:
    """What of a profile is done, failed, stale or never run; the size of its store."""
    from kbitlib.experiments.runner import report_status
    from kbitlib.report.numbers import file_size
    from kbitlib.runs.progress import progress_line

    every = profile_settings(profile, {}, ())
    facts = report_status(every)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name, chapter in facts["chapters"].items():
        click.echo(f"{name:24} {chapter['status']}" + (f": {chapter['error']}" if chapter.get("error") else ""))
    store = facts["store"]
    counts = [
        f"{store['records']} done",
        *(f"{store[state]} {state}" for state in ("failed", "stale", "never") if state in store),
    ]
    click.echo(f"records: {', '.join(counts)} run; store {file_size(store['bytes'])}")
    if line := progress_line(next(iter(every.values())).store.root):
        click.echo(f"last: {line}")


def profile_settings(profile: str, given: dict[str, Any], chapters: tuple[str, ...]) -> dict[str, Any]:
    """The settings of every chapter of a profile with what was given, all checked before anything runs.

    Raises ValueError for an unknown profile, chapter or parameter, or a value that is not allowed.
    """
    from kbitlib.experiments.plan import plan
    from kbitlib.experiments.settings import CHAPTERS, check, parameters

    for name in chapters:
        if name not in CHAPTERS:
            raise ValueError(f"there is no chapter {name!r}; there are {', '.join(CHAPTERS)}")
    takers = {name: CHAPTERS[name].model_fields for name in chapters or CHAPTERS}
    for name in given:
        if not any(name in fields for fields in takers.values()):
            known = dict.fromkeys(field for fields in takers.values() for field in fields)
            raise ValueError(f"no chapter that is to run takes a parameter {name!r}; they take {', '.join(known)}")
    in_order = [*chapters, *(name for name in CHAPTERS if name not in chapters)]  # what was asked for is told first
    checked = {name: check(name, parameters(profile, name, given)) for name in in_order}
    every = {name: checked[name] for name in CHAPTERS}
    if next(iter(every.values())).device == "cuda":
        require_cuda()
    for settings in every.values():
        plan(settings)  # reads the corpus and the model folders, so that what they lack is told now
    return every


def parse(name: str, value: str) -> Any:
    """A parameter's value from the command line: JSON if it is JSON, else a string; paths made absolute."""
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    if name == "corpus" and isinstance(parsed, str):
        return absolute(parsed)
    if name == "models" and isinstance(parsed, str):
        return [absolute(parsed)]
    if name == "models" and isinstance(parsed, list):
        return [absolute(item) if isinstance(item, str) else item for item in parsed]
    return parsed


def absolute(path: str) -> str:
    """A path that exists made absolute, since a notebook's kernel may stand elsewhere; anything else as it is."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


@contextmanager
def shown_progress(root: Path) -> Iterator[None]:
    """Show how far the sweep at work in a store is: one line that is drawn over on a terminal, plain lines
    elsewhere."""
    from kbitlib.runs.progress import Progress

    stop, terminal = threading.Event(), sys.stderr.isatty()
    began = time.time()

    def watch() -> None:
        last, spoken = "", 0.0
        while not stop.wait(1.0):
            progress = Progress.read(root)
            if progress is None or progress.time < began:
                continue
            line = progress.line()
            if terminal and line != last:
                sys.stderr.write(f"\r\033[K    {line}")
                sys.stderr.flush()
            elif not terminal and line != last and time.time() - spoken > 15:
                sys.stderr.write(f"    {line}\n")
                spoken = time.time()
            last = line

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if terminal:
            sys.stderr.write("\r\033[K")


def relative(path: Path) -> str:
    """A path as seen from here, if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

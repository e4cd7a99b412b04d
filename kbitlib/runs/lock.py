"""One run at a time per store, by a lock that a dead run does not keep."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kbitlib.runs.files import shown
from kbitlib.runs.provenance import COMMAND, command

HELD = "KBIT_LOCK_HELD"  # the lock that this process or one it descends from holds


class StoreBusy(RuntimeError):
    """Another run holds the store."""


@contextmanager
def hold(root: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of the store at `root`; in a process that descends from its holder, join it.

    Yields whether this call took the lock. The kernel releases it when the holder dies, however it dies. Raises
    StoreBusy when another run holds it, or, with `wait`, prints that sentence once and waits.
    """
    path = root.resolve() / "lock"
    if os.environ.get(HELD) == str(path):
        yield False
        return
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    _acquire(lock, path.with_name("holder.json"), wait)
    before = {name: os.environ.get(name) for name in (HELD, COMMAND)}
    try:
        os.environ.update({HELD: str(path), COMMAND: command()})
        with suppress(OSError):  # it serves a message only: a full disk is reported where a result is lost
            path.with_name("holder.json").write_text(json.dumps(_me()), encoding="utf-8")
        yield True
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        with suppress(OSError):
            path.with_name("holder.json").unlink()
        lock.release()


def _acquire(lock: FileLock, holder: Path, wait: bool) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sentence = f"Another run holds the store {shown(holder.parent)}: {_who(holder)}"
        if not wait:
            raise StoreBusy(f"{sentence}; wait until it ends, or stop it.") from None
        print(f"{sentence}; waiting until it ends.", file=sys.stderr, flush=True)
        lock.acquire()


def _me() -> dict[str, str | int]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"pid": os.getpid(), "since": since, "command": command()}


def _who(holder: Path) -> str:
    try:
        who = json.loads(holder.read_bytes())
        return f"process {who['pid']}, since {who['since']} ({who['command']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "it does not say who it is"

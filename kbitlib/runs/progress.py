"""How far a sweep is: written by the sweep, read by whoever waits for it, in another process."""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from kbitlib.runs.files import SCRATCH, replace_file


@dataclass(frozen=True)
class Progress:
    """The state of a sweep at `time` (seconds since 1970), `elapsed` seconds after it began in process `pid`.

    `eta_seconds` is the estimated time left, by cost; None before the first job is done.
    """

    label: str
    done: int
    failed: int
    total: int
    elapsed: float
    eta_seconds: float | None
    pid: int
    time: float

    @classmethod
    def read(cls, root: Path) -> "Progress | None":
        """The last state written in the store at `root`; None when there is none or it cannot be read."""
        try:
            return cls(**json.loads((root / "progress.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, root: Path) -> None:
        """Written whole or not at all; a disk that is full must not stop the run for the sake of its display."""
        with suppress(OSError):
            replace_file(root / "progress.json", json.dumps(asdict(self)).encode(), root / SCRATCH)

    def line(self) -> str:
        """One line for people: `family: 7 of 14, 3 min 20 s left`."""
        text = f"{self.label}: {self.done} of {self.total}" + (f" ({self.failed} failed)" if self.failed else "")
        if self.done + self.failed >= self.total:
            return f"{text}, took {duration(self.elapsed)}"
        if not psutil.pid_exists(self.pid):
            return f"{text}, stopped"
        if self.eta_seconds is None:
            return text
        return f"{text}, {duration(max(0.0, self.eta_seconds - (time.time() - self.time)))} left"


def progress_line(root: Path) -> str | None:
    """The line of the sweep that last ran in the store at `root`; None when there was none."""
    progress = Progress.read(root)
    return progress.line() if progress else None


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


class Meter:
    """Counts the jobs of one sweep and writes its progress; `costs` are those of the jobs still to compute."""

    def __init__(self, root: Path, label: str, present: int, costs: Sequence[float]) -> None:
        self._root, self._label, self._present = root, label, present
        self._jobs, self._left = len(costs), sum(costs)
        self._done = self._failed = 0
        self._spent = 0.0
        self._began = time.monotonic()
        self._write()

    def count(self, cost: float, failed: bool) -> None:
        """One more job came to its end."""
        self._done, self._failed = self._done + (not failed), self._failed + failed
        self._spent, self._left = self._spent + cost, self._left - cost
        self._write()

    def _write(self) -> None:
        elapsed = time.monotonic() - self._began
        eta = self._left * elapsed / self._spent if self._spent > 0 else None
        total = self._present + self._jobs
        done = self._present + self._done
        Progress(self._label, done, self._failed, total, elapsed, eta, os.getpid(), time.time()).write(self._root)

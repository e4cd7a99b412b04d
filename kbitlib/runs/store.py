"""Get or compute: the result of a step is a record in the store, written once, whole, and read ever after.

root/corpus.prepare/0f3a.../record.json     settings, rows, seconds, provenance, sha256 of each artifact, checksum
root/corpus.prepare/0f3a.../train.bin       an artifact
root/corpus.prepare/77b1....failed.json     a step that raised
root/corpus.prepare/90cc....damaged/        a damaged record, until it is made again
root/.work/                                 what is being made, and one lock a record
"""

import hashlib
import json
import os
import re
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel

from kbitlib.runs.files import SCRATCH, replace_file, shown, sync_folder
from kbitlib.runs.lock import StoreBusy, hold
from kbitlib.runs.provenance import provenance, source_digest
from kbitlib.runs.record import Damaged, Record, Result, StoreError, canonical, load, plain, plain_rows, save

__all__ = ["Failure", "Plan", "Record", "Result", "Settings", "Status", "Step", "Store", "StoreBusy", "StoreError"]

KEY = re.compile(r"[0-9a-f]{24}")

Settings = TypeVar("Settings", bound=BaseModel)
Step = Callable[[Settings, "Store"], Result]
Plan = Sequence[tuple[Step[Any], BaseModel]]


@dataclass(frozen=True)
class Failure:
    """A step that came to no result: what it raised, and when (UTC)."""

    key: str
    step: str
    settings: dict[str, Any]
    error: str
    time: str
    traceback: str = ""


@dataclass(frozen=True)
class Status:
    """A plan held against a store: what is done, has failed, never ran; records the plan does not ask for; bytes."""

    done: list[Record]
    failed: list[Failure]
    never: list[tuple[str, dict[str, Any]]]
    stale: list[Record]
    size: int


class Store:
    """Records in a folder, which is made when the first one is written."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self._inside = 0.0  # seconds spent in get_or_compute, to take the time of parents out of a step's own

    def key(self, step: Step[Settings], settings: Settings) -> str:
        """24 hex digits that change with the step's name, any setting, and any code that the step rests on.

        Raises ValueError for a step that is not a top-level function of a module, and for a setting that is no JSON.
        """
        parts = (step.__module__, step_name(step), canonical(dump(settings)), source_digest(step.__module__))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]

    def get(self, step: Step[Settings], settings: Settings) -> Record | None:
        """The record; None when it is absent, or damaged: then it is set aside with one warning."""
        folder = self._folder(step, settings)
        try:
            return _load_verified(folder)
        except Damaged:
            try:
                with self._record_lock(folder.name, timeout=0):
                    return _load_or_set_aside(folder)
            except Timeout:  # another process is making it again
                return None

    def get_or_compute(self, step: Step[Settings], settings: Settings) -> Record:
        """The record, computed first if it is not there; two processes that want the same one compute it once.

        Raises what the step raises, after noting it as failed; ValueError for rows that are not JSON; StoreError when
        the record cannot be written.
        """
        began, inside = time.perf_counter(), self._inside
        try:
            record = self.get(step, settings)
            if record is None:
                folder = self._folder(step, settings)
                with self._record_lock(folder.name, timeout=-1):
                    record = _load_or_set_aside(folder) or self._compute(step, settings, folder)
            return record
        finally:
            self._inside = inside + time.perf_counter() - began

    def records(self, step: Step[Any] | None = None) -> list[Record]:
        """The records there are, of one step or of all, whether or not the code and settings of today ask for them."""
        found = []
        for entry in self._entries(step):
            if KEY.fullmatch(entry.name):
                with suppress(Damaged):
                    found.append(load(entry))
        return found

    def failures(self, step: Step[Any] | None = None) -> list[Failure]:
        """The steps that came to no result when they last ran."""
        found = []
        for entry in self._entries(step):
            if entry.name.endswith(".failed.json"):
                with suppress(OSError, ValueError, TypeError):
                    found.append(Failure(**json.loads(entry.read_bytes())))
        return found

    def status(self, plan: Plan) -> Status:
        """What of a plan, a list of (step, settings), is done, failed or never ran, and what else its steps left."""
        pairs = {self.key(step, settings): (step, settings) for step, settings in plan}
        failures = {failure.key: failure for failure in self.failures()}
        status = Status([], [], [], [], self.size())
        for key, (step, settings) in pairs.items():
            record = self.get(step, settings)
            if record:
                status.done.append(record)
            elif key in failures:
                status.failed.append(failures[key])
            else:
                status.never.append((step_name(step), dump(settings)))
        for step in dict.fromkeys(step for step, _ in plan):
            status.stale.extend(record for record in self.records(step) if record.key not in pairs)
        return status

    def size(self) -> int:
        """Bytes of all files in the store."""
        total = 0
        for file in self.root.rglob("*"):
            with suppress(FileNotFoundError):  # a run may be at work here
                total += file.stat().st_size if file.is_file() else 0
        return total

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Hold the store, as one run at a time should; processes that the holder starts take part without waiting.

        Raises StoreBusy, naming the holder, when another run holds it; with `wait`, says so once and waits instead.
        """
        with hold(self.root, wait) as newly:
            if newly:
                self._remove_leftovers()
            yield

    def record_failure(self, step: Step[Settings], settings: Settings, error: str, details: str = "") -> Failure:
        """Note that a step came to no result; a later success takes the note away."""
        folder = self._folder(step, settings)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure(folder.name, folder.parent.name, dump(settings), error, now, details)
        with suppress(OSError):  # the error itself matters more than a note of it on a full disk
            replace_file(_failed(folder), json.dumps(asdict(failure), indent=1).encode(), self.root / SCRATCH)
        return failure

    def _folder(self, step: Step[Settings], settings: Settings) -> Path:
        return self.root / step_name(step) / self.key(step, settings)

    def _entries(self, step: Step[Any] | None) -> list[Path]:
        return sorted(self.root.glob("[!.]*/*" if step is None else f"{step_name(step)}/*"))

    @contextmanager
    def _record_lock(self, key: str, timeout: float) -> Iterator[None]:
        lock = FileLock(self.root / SCRATCH / f"{key}.lock")
        try:
            (self.root / SCRATCH).mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout)
        except Timeout:
            raise
        except OSError as error:
            raise StoreError(f"Cannot write to the store {shown(self.root)}: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()

    def _compute(self, step: Step[Settings], settings: Settings, folder: Path) -> Record:
        origin, inside, began = provenance(), self._inside, time.perf_counter()
        try:
            result = step(settings, self)
            rows = plain_rows(result.rows)
        except StoreError:  # a parent could not be written: that is no fault of this step
            raise
        except Exception as error:
            self.record_failure(step, settings, f"{type(error).__name__}: {error}", traceback.format_exc())
            raise
        seconds = time.perf_counter() - began - (self._inside - inside)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in result.files.items()}
        work = self.root / SCRATCH / folder.name
        record = Record(folder.name, folder.parent.name, dump(settings), rows, seconds, origin, work, digests)
        self._write(record, result.files, folder)
        return _load_verified(folder) or record

    def _write(self, record: Record, files: dict[str, bytes], folder: Path) -> None:
        try:
            shutil.rmtree(record.folder, ignore_errors=True)  # left by a run that was killed: we hold the record's lock
            record.folder.mkdir(parents=True)
            save(record, files)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(record.folder, folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise StoreError(
                f"Cannot write the record of {record.step} to the store {shown(self.root)}: {error.strerror}."
            ) from error
        finally:
            shutil.rmtree(record.folder, ignore_errors=True)
        _failed(folder).unlink(missing_ok=True)
        shutil.rmtree(_damaged(folder), ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Take away what killed runs left half-made; what a process is still making is locked and stays."""
        for entry in (self.root / SCRATCH).glob("*"):
            if KEY.fullmatch(entry.name):
                with suppress(Timeout), self._record_lock(entry.name, timeout=0):
                    shutil.rmtree(entry, ignore_errors=True)
            elif entry.suffix != ".lock":
                entry.unlink(missing_ok=True)


def step_name(step: Step[Any]) -> str:
    """`corpus.prepare` for `kbitlib.data.corpus.prepare`. Raises ValueError unless other processes can import it."""
    module, name = getattr(step, "__module__", "__main__"), getattr(step, "__qualname__", repr(step))
    if module == "__main__" or not name.isidentifier():
        raise ValueError(f"Step {name!r} of {module}: a step must be a top-level function of an importable module.")
    return f"{module.rpartition('.')[2]}.{name}"


def dump(settings: BaseModel) -> dict[str, Any]:
    """The settings as JSON holds them. Raises ValueError, naming the setting, for NaN and infinity."""
    content = settings.model_dump(mode="json")
    return {name: plain(value, f"Setting {name!r}") for name, value in content.items()}


def _load_verified(folder: Path) -> Record | None:
    if not folder.exists():
        return None
    record = load(folder)
    for name in record.files:
        record.verify(name)
    return record


def _load_or_set_aside(folder: Path) -> Record | None:
    """As the name says; the caller holds the lock of this record."""
    try:
        return _load_verified(folder)
    except Damaged as damage:
        shutil.rmtree(_damaged(folder), ignore_errors=True)
        os.rename(folder, _damaged(folder))
        warnings.warn(f"The record {folder.parent.name}/{folder.name} is damaged ({damage}): made again.", stacklevel=4)
        return None


def _failed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed.json")


def _damaged(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.damaged")

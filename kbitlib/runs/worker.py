"""The process that computes records for a sweep: it reads jobs from its parent and dies when the parent does.

Started as a plain subprocess, not by `multiprocessing`: that would run the parent's main module again, which a notebook
does not have and a script without a guard would start all over.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kbitlib.runs.provenance import COMMAND, command
from kbitlib.runs.store import Step, Store, StoreError

# One thread each: the processes fill the cores, and a sum then does not depend on how many cores a machine has.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

# How a job ended: its record is there; it raised, and the store has noted so; it never came to an answer; it cannot be
# written, and nor can any other.
DONE, FAILED, LOST, UNWRITABLE = "done", "failed", "lost", "unwritable"
Outcome = tuple[str, str]  # one of these, and the error's sentence


def compute(step: Step[Any], settings: BaseModel, root: Path, key: str) -> Outcome:
    """Have the record made, and say how that ended instead of raising; `key` is what its parent will look for."""
    store = Store(root)
    try:
        if store.key(step, settings) != key:  # edited since the parent read it, or another version on another machine
            return LOST, "its worker process runs other source code than this one; start the run again"
        store.get_or_compute(step, settings)
    except StoreError as error:
        return UNWRITABLE, str(error)
    except Exception as error:
        return FAILED, f"{type(error).__name__}: {error}"
    return DONE, ""


class Worker:
    """A worker process as its parent sees it: started with its first job, and again if it has died."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, step: Step[Any], settings: BaseModel, key: str) -> Outcome:
        """Compute one record there, the one whose key this is."""
        with self._guard:
            if self._stopped:
                return LOST, "it was stopped"
            if self._process is None:
                self._process = _start(self._root)
            process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(pickle.dumps((step, settings, key)), process.stdin)
            process.stdin.flush()
            outcome: Outcome = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process = None
            return LOST, _cause_of_death(process)
        return outcome

    def kill(self) -> None:
        """End the process at once, whatever it is doing; a `run` that waits for it in another thread then returns."""
        with self._guard:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Free what a killed process has left with its parent."""
        if self._process is not None:
            _bury(self._process)


def _start(root: Path) -> subprocess.Popen[bytes]:
    # The parent's sys.path, so that a step is found wherever the parent found it.
    code = f"import sys; sys.path[:] = {sys.path!r}; from kbitlib.runs.worker import serve; serve({str(root)!r})"
    environment = {**os.environ, **ONE_THREAD, COMMAND: command()}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def _cause_of_death(process: subprocess.Popen[bytes]) -> str:
    with suppress(subprocess.TimeoutExpired):  # it may have closed its pipe and live on
        process.wait(timeout=10)
    _bury(process)
    if os.name == "posix" and process.returncode == -signal.SIGKILL:
        return "its worker process was killed by the system, most often because memory ran out"
    return f"its worker process died (exit status {process.returncode})"


def _bury(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(OSError), process:  # closes its pipes and waits
        pass


def serve(root: str) -> None:
    """The worker's own life: answer each job that comes on standard input, until that closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a step prints must not get between the answers
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        pickle.dump(_answer(jobs.get(), Path(root)), answers)
        answers.flush()


def _answer(job: bytes, root: Path) -> Outcome:
    try:
        step, settings, key = pickle.loads(job)
    except Exception as error:  # the module may fail to import in any way
        return LOST, f"its worker process cannot load it: {type(error).__name__}: {error}"
    return compute(step, settings, root, key)


def _listen(jobs: "queue.SimpleQueue[bytes]") -> None:
    """Pass jobs on; the end of the stream means that the parent has finished or died, even by kill -9."""
    try:
        while True:
            jobs.put(pickle.load(sys.stdin.buffer))
    finally:
        os._exit(0)

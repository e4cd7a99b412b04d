"""Steps for the tests: small functions Settings -> Result, each with one habit; and a process that has them at hand."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from kbitlib.runs import Result


class Point(BaseModel, frozen=True, extra="forbid"):
    x: float
    name: str = ""


def square(settings, store):
    note(settings.x)
    return Result([{"x": settings.x, "y": settings.x**2}], {"data.bin": np.float64(settings.x).tobytes() * 100})


def slow(settings, store):
    time.sleep(0.2)
    return square(settings, store)


def endless(settings, store):
    note(settings.x)
    time.sleep(600)


def sum_of_squares(settings, store):
    """Rests on two other records."""
    time.sleep(0.05)
    parents = [store.get_or_compute(slow, Point(x=settings.x + shift)) for shift in (0, 1)]
    return Result([{"y": sum(parent.rows[0]["y"] for parent in parents)}])


def picky(settings, store):
    if settings.x == 3:
        raise ValueError("three is not allowed")
    return square(settings, store)


def doomed(settings, store):
    """Ends as a process does that the system kills for want of memory."""
    if settings.x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(settings, store)


def interrupted(settings, store):
    """Gets the Ctrl-C that a terminal sends to parent and workers alike."""
    os.kill(os.getpid(), signal.SIGINT)
    return square(settings, store)


def leaver(settings, store):
    os._exit(7)


def talker(settings, store):
    print("a step may print")
    os.system("echo and so may a program it calls")
    return square(settings, store)


def surroundings(settings, store):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    main_thread = threading.current_thread() is threading.main_thread()
    return Result([{"pid": os.getpid(), "main_thread": main_thread, **{name: os.environ.get(name) for name in names}}])


def numpy_scalars(settings, store):
    row = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.str_("e"), "f": None, "g": (1, [2])}
    return Result([row])


def not_finite(settings, store):
    return Result([{"loss": 1.0}, {"loss": float(settings.name)}])


def large(settings, store):
    return Result([], {"small.bin": b"s" * 100, "large.bin": b"l" * 1_000_000})


def climbing(settings, store):
    return Result([], {settings.name: b""})


def note(x):
    if "EXAMPLE_LOG" in os.environ:
        with open(os.environ["EXAMPLE_LOG"], "a") as file:
            file.write(f"{x}\n")


STARTED = []


def run_python(code, **kwargs):
    """A new process that runs `code`, with the names of this module and of kbitlib.runs; the test's end is its end."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); from example_steps import *; from kbitlib.runs import *\n{code}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    STARTED.append(subprocess.Popen([sys.executable, "-c", code], text=True, **pipes, **kwargs))
    return STARTED[-1]

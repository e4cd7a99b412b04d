"""The example steps must be importable by name, here and in the processes that the tests start."""

import sys
from pathlib import Path

import psutil
import pytest

from kbitlib.runs import Store

sys.path.insert(0, str(Path(__file__).parent))
from example_steps import STARTED


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A function that returns the `x` of each example step that has run since, in whatever process."""
    file = tmp_path / "log"
    monkeypatch.setenv("EXAMPLE_LOG", str(file))
    return lambda: [float(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture(autouse=True)
def _no_process_stays():
    """Whatever a failed test has left running ends with it."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()

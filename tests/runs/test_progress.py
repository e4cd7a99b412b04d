"""Progress: what the sweep writes, and the line that people read."""

import os

import pytest

from kbitlib.runs import Progress, progress_line
from kbitlib.runs import progress as module
from kbitlib.runs.progress import Meter, duration


@pytest.fixture
def clock(monkeypatch):
    """The time of day and the monotonic clock, both set by hand."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "time", lambda: Clock.now)
    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_estimate_is_by_cost_and_waits_for_the_first_job(tmp_path, clock):
    meter = Meter(tmp_path, "family", present=2, costs=[6, 3, 1])
    assert progress_line(tmp_path) == "family: 2 of 5"
    clock.now += 120
    assert progress_line(tmp_path) == "family: 2 of 5"
    meter.count(6, failed=False)
    assert Progress.read(tmp_path).eta_seconds == pytest.approx(4 * 120 / 6)
    assert progress_line(tmp_path) == "family: 3 of 5, 1 min 20 s left"
    clock.now += 30
    assert progress_line(tmp_path) == "family: 3 of 5, 50 s left"
    meter.count(3, failed=True)
    assert progress_line(tmp_path) == "family: 3 of 5 (1 failed), 17 s left"
    clock.now += 1000
    assert progress_line(tmp_path) == "family: 3 of 5 (1 failed), 0 s left"
    meter.count(1, failed=False)
    assert progress_line(tmp_path) == "family: 4 of 5 (1 failed), took 19 min 10 s"
    assert Progress.read(tmp_path).pid == os.getpid()


def test_costs_of_nothing_give_no_estimate(tmp_path, clock):
    meter = Meter(tmp_path, "family", present=0, costs=[0, 0])
    clock.now += 5
    meter.count(0, failed=False)
    assert progress_line(tmp_path) == "family: 1 of 2"


def test_a_dead_sweep_is_said_to_have_stopped(tmp_path):
    Progress("family", 3, 0, 7, 10.0, 20.0, pid=2**22 + 1, time=0.0).write(tmp_path)
    assert progress_line(tmp_path) == "family: 3 of 7, stopped"


@pytest.mark.parametrize("text", [None, "", "[]", '{"label": "family"}', '{"label": '])
def test_a_file_that_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "progress.json").write_text(text)
    assert progress_line(tmp_path) is None


def test_a_full_disk_does_not_stop_the_run_for_its_display(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "replace_file", full)
    Meter(tmp_path, "family", present=0, costs=[1]).count(1, failed=False)
    assert progress_line(tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 0 min"),
        (7530, "2 h 5 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text

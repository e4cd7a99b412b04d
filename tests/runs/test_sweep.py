"""A sweep: the same records whatever the engine, whatever went wrong on the way."""

import os
import signal
import subprocess
import sys
import threading
import time

import nbformat
import psutil
import pytest
from example_steps import (
    Point,
    doomed,
    endless,
    interrupted,
    leaver,
    picky,
    run_python,
    slow,
    square,
    sum_of_squares,
    surroundings,
    talker,
)
from nbclient import NotebookClient

from kbitlib.runs import Store, SweepError, progress_line, sweep
from kbitlib.runs.progress import Progress

GRID = [Point(x=x) for x in (1, 5, 2, 4)]
ENGINES = ["serial", "local"]


def rows(records):
    return [record.rows for record in records]


@pytest.mark.parametrize("engine", ENGINES)
def test_records_come_in_grid_order_and_are_computed_once(store, log, engine):
    store.get_or_compute(square, Point(x=5))
    first = sweep(square, GRID + GRID[:1], store, engine=engine, label="family")
    assert rows(first) == [[{"x": float(x), "y": float(x**2)}] for x in (1, 5, 2, 4, 1)]
    assert progress_line(store.root).startswith("family: 4 of 4, took")
    assert sweep(square, GRID + GRID[:1], store, engine=engine) == first
    assert sorted(log()) == [1, 2, 4, 5]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_costliest_comes_first(store, log, engine):
    sweep(square, GRID, store, engine=engine, workers=1, cost=lambda settings: settings.x)
    assert log() == [5, 4, 2, 1]


def test_an_empty_grid_has_no_records(store):
    assert sweep(square, [], store) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failing_job_does_not_stop_the_others(store, log, engine):
    grid = [Point(x=x) for x in (1, 3, 2)]
    with pytest.raises(SweepError) as raised:
        sweep(picky, grid, store, engine=engine, label="family")
    assert str(raised.value) == "1 of 3 jobs of family failed:\n  x=3.0: ValueError: three is not allowed"
    assert raised.value.failures == [(Point(x=3), "ValueError: three is not allowed")]
    assert sorted(log()) == [1, 2]
    assert [failure.error for failure in store.failures()] == ["ValueError: three is not allowed"]
    assert progress_line(store.root).startswith("family: 2 of 3 (1 failed), took")


def test_failed_jobs_are_told_apart_by_the_settings_that_differ(store):
    with pytest.raises(SweepError, match=r"2 of 2 .*\n  name=a: .*\n  name=b: "):
        sweep(picky, [Point(x=3, name="a"), Point(x=3, name="b")], store, engine="serial")


def test_a_worker_that_the_system_kills_is_one_failed_job(store, log):
    with pytest.raises(SweepError, match=r"x=3\.0: its worker process was killed by the system, most often because"):
        sweep(doomed, [Point(x=x) for x in (3, 1, 2)], store, workers=1)
    assert log() == [1, 2]
    assert [failure.settings["x"] for failure in store.failures(doomed)] == [3]


def test_a_worker_that_leaves_is_a_failed_job(store):
    with pytest.raises(SweepError, match=r"its worker process died \(exit status 7\)"):
        sweep(leaver, [Point(x=1)], store)


def test_a_worker_leaves_an_interrupt_to_its_parent(store):
    assert rows(sweep(interrupted, [Point(x=2)], store)) == [[{"x": 2.0, "y": 4.0}]]


def test_a_step_may_print(store, capfd):
    assert sweep(talker, [Point(x=2)], store)[0].rows == [{"x": 2.0, "y": 4.0}]
    out, err = capfd.readouterr()
    assert out == ""
    assert "so may a program" in err


def test_workers_are_processes_of_one_thread(store, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    [[row]] = rows(sweep(surroundings, [Point(x=1)], store))
    assert row["pid"] != os.getpid()
    assert row["main_thread"]
    assert [row[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")] == ["1", "1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "5"
    [[row]] = rows(sweep(surroundings, [Point(x=2)], store, engine="serial"))
    assert row["pid"] == os.getpid()


def test_no_worker_outlives_the_sweep(store):
    sweep(square, GRID, store)
    assert psutil.Process().children(recursive=True) == []


def test_jobs_share_their_parents(store, log):
    records = sweep(sum_of_squares, [Point(x=x) for x in (1, 2, 3)], store, workers=2)
    assert rows(records) == [[{"y": 5.0}], [{"y": 13.0}], [{"y": 25.0}]]
    assert sorted(log()) == [1, 2, 3, 4]


def test_a_full_disk_stops_the_sweep_with_its_sentence(store, log, monkeypatch):
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    sweep(large, [Point(x=x) for x in range(50)], Store({str(store.root)!r}), workers=1)
except StoreError as error:
    print(error)
"""
    said, errors = run_python(code).communicate()
    assert said.startswith("Cannot write the record of example_steps.large")
    assert said.count("\n") == 1
    assert errors == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "threads"}, "Engine 'threads' is unknown: 'local', 'serial' or 'tcp://host:port' are allowed"),
        ({"engine": "tcp://nowhere"}, "Engine 'tcp://nowhere' is unknown"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_bad_options_are_refused(store, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep(square, GRID, store, **options)
    assert not store.root.exists()


def test_settings_of_a_script_are_refused(store):
    code = f"""
from pydantic import BaseModel
class Own(BaseModel): x: float = 1
sweep(square, [Own()], Store({str(store.root)!r}))
"""
    assert "ValueError: Own is defined in a notebook or script" in run_python(code).communicate()[1]


def test_a_worker_that_cannot_import_the_step_says_so(store, monkeypatch):
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry != os.path.dirname(__file__)])
    with pytest.raises(SweepError, match=r"its worker process cannot load it: ModuleNotFoundError: .*'example_steps'"):
        sweep(square, [Point(x=1)], store)


def test_a_worker_with_other_source_code_says_so(store, monkeypatch):
    monkeypatch.setattr("kbitlib.runs.store.source_digest", lambda module: "another")
    with pytest.raises(SweepError, match="its worker process runs other source code"):
        sweep(square, [Point(x=1)], store)


SWEEP = """
with Store({root!r}).lock():
    sweep(slow, [Point(x=x) for x in range(6)], Store({root!r}), workers=2, label="family")
"""


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about")


def test_killed_in_the_midst_and_resumed_gives_the_same_table(store, log, tmp_path):
    run = run_python(SWEEP.format(root=str(store.root)))
    wait_for(lambda: len(store.records()) >= 2)
    family = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.communicate()
    assert len(family) == 2
    assert psutil.wait_procs(family, timeout=60)[1] == []
    done = store.records()
    assert 2 <= len(done) < 6
    assert progress_line(store.root).endswith("stopped")
    computed = len(log())

    resumed = run_python(SWEEP.format(root=str(store.root)))
    assert resumed.communicate() == ("", "")
    grid = [Point(x=x) for x in range(6)]
    assert len(log()) - computed == 6 - len(done)
    undisturbed = sweep(slow, grid, Store(tmp_path / "undisturbed"))
    assert rows(sweep(slow, grid, store)) == rows(undisturbed)
    assert [entry for entry in (store.root / ".work").iterdir() if entry.suffix != ".lock"] == []
    assert progress_line(store.root).startswith("example_steps.slow: 6 of 6")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_all_at_once(store, log, end):
    code = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored when the tests run in the background
sweep(endless, [Point(x=x) for x in range(8)], Store({str(store.root)!r}), workers=2)
"""
    run = run_python(code, start_new_session=True)
    wait_for(lambda: len(log()) == 2)
    family = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, end)  # as a terminal does: to the parent and its workers alike
    assert run.communicate(timeout=60)[1].count("KeyboardInterrupt") == (end == signal.SIGINT)
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert store.records() == store.failures() == []


def test_a_keyboard_interrupt_in_this_process_leaves_promptly(store, log):
    def interrupt():
        wait_for(lambda: len(log()) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        sweep(endless, GRID, store, workers=2)
    signal.signal(signal.SIGINT, before)
    assert psutil.Process().children(recursive=True) == []


def test_a_sweep_in_a_notebook(store):
    here = os.path.dirname(__file__)
    code = f"""
import sys; sys.path.insert(0, {here!r})
from example_steps import *; from kbitlib.runs import *
[record.rows[0]["y"] for record in sweep(square, [Point(x=2), Point(x=3)], Store({str(store.root)!r}))]
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert [output["data"]["text/plain"] for output in notebook.cells[0].outputs] == ["[4.0, 9.0]"]


def test_a_script_without_a_main_guard(store, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from example_steps import Point, square
from kbitlib.runs import Store, sweep
print(sweep(square, [Point(x=2)], Store({str(store.root)!r}))[0].rows)
""")
    assert subprocess.run([sys.executable, script], capture_output=True, text=True).stdout == "[{'x': 2.0, 'y': 4.0}]\n"


def test_progress_is_written_while_it_runs(store):
    seen = []
    original = Progress.write

    def write(self, root):
        seen.append((self.done, self.total, self.eta_seconds is None))
        original(self, root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "write", write)
        sweep(square, GRID, store, engine="serial")
    assert seen == [(0, 4, True), (1, 4, False), (2, 4, False), (3, 4, False), (4, 4, False)]


def test_a_cluster_without_dask_is_one_sentence(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="needs Dask, which the extra `cluster` installs"):
        sweep(square, GRID, store, engine="tcp://127.0.0.1:9")


@pytest.fixture(scope="module")
def scheduler():
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, protocol="tcp") as cluster:
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same_records(store, scheduler, tmp_path):
    assert rows(sweep(square, GRID, store, engine=scheduler)) == rows(sweep(square, GRID, Store(tmp_path / "b")))


def test_failures_on_a_cluster(store, scheduler):
    with pytest.raises(SweepError, match="three is not allowed"):
        sweep(picky, [Point(x=x) for x in (1, 3, 2)], store, engine=scheduler)
    assert len(store.records()) == 2

"""The store: what is there is read, whatever is wrong with it is made again, nothing half-made is seen."""

import errno
import json
import os
import random
import signal
import time
import warnings

import numpy as np
import pytest
from example_steps import Point, climbing, large, not_finite, numpy_scalars, picky, run_python, square, sum_of_squares

from kbitlib.runs import Result, Store, StoreError


def half_made(store):
    """What lies in the working folder but the locks."""
    return [entry.name for entry in (store.root / ".work").glob("*") if entry.suffix != ".lock"]


def test_a_record_is_computed_once_and_read_back_the_same(store, log):
    assert store.get(square, Point(x=2)) is None
    computed = store.get_or_compute(square, Point(x=2))
    read = Store(store.root).get_or_compute(square, Point(x=2))
    assert computed == read == store.get(square, Point(x=2))
    assert log() == [2]
    assert read.rows == [{"x": 2.0, "y": 4.0}]
    assert read.settings == {"x": 2.0, "name": ""}
    assert read.step == "example_steps.square"
    assert read.read("data.bin") == read.path("data.bin").read_bytes() == np.float64(2).tobytes() * 100
    assert read.provenance["packages"]["numpy"] == np.__version__
    assert half_made(store) == []


def test_reading_needs_no_store_folder(tmp_path):
    store = Store(tmp_path / "absent")
    assert store.get(square, Point(x=1)) is None
    assert store.records() == store.failures() == []
    assert store.size() == 0
    assert not store.root.exists()


def test_key_is_short_stable_and_sensitive(store):
    key = store.key(square, Point(x=1))
    assert len(key) == 24
    assert set(key) <= set("0123456789abcdef")
    others = [store.key(square, Point(x=2)), store.key(square, Point(x=1, name="a")), store.key(picky, Point(x=1))]
    assert len({key, *others}) == 4
    assert store.key(square, Point(name="", x=1)) == key
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    process = run_python("print(Store('elsewhere').key(square, Point(x=1)))", env=environment)
    assert process.communicate()[0].strip() == key


@pytest.mark.parametrize(
    "step", [lambda settings, store: Result([]), print, Store.key], ids=["lambda", "builtin", "method"]
)
def test_only_top_level_functions_of_modules_are_steps(store, step):
    with pytest.raises(ValueError, match="step"):
        store.key(step, Point(x=1))


def test_infinite_settings_are_refused(store):
    with pytest.raises(ValueError, match="Setting 'x' is inf"):
        store.key(square, Point(x=float("inf")))


def test_numpy_scalars_become_plain(store):
    row = store.get_or_compute(numpy_scalars, Point(x=1)).rows[0]
    assert row == {"a": 0.5, "b": 3, "c": True, "d": "e", "f": None, "g": [1, [2]]}
    assert [type(value) for value in row.values()] == [float, int, bool, str, type(None), list]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_rows_that_are_not_finite_are_refused_by_column(store, value):
    with pytest.raises(ValueError, match=f"Column 'loss' is {value}"):
        store.get_or_compute(not_finite, Point(x=1, name=value))
    assert store.records() == []


@pytest.mark.parametrize("name", ["../outside", "a/b", "record.json", "", ".hidden"])
def test_artifact_names_stay_in_the_folder(store, name):
    with pytest.raises(ValueError, match="Artifact name"):
        store.get_or_compute(climbing, Point(x=1, name=name))
    assert store.records() == []
    assert half_made(store) == []


def test_an_artifact_that_is_not_there_is_named(store):
    with pytest.raises(ValueError, match=r"no artifact 'other.bin', only \['data.bin'\]"):
        store.get_or_compute(square, Point(x=2)).read("other.bin")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(file):
    file.unlink()


def write_foreign_json(file):
    file.write_text('{"rows": [1, 2]}')


def write_a_list(file):
    file.write_text("[]")


def empty(file):
    file.write_bytes(b"")


def nest_deeply(file):
    file.write_text("[" * 100_000)


def make_a_folder(file):
    file.unlink()
    file.mkdir()


DAMAGES = [truncate, flip_a_bit, remove, write_foreign_json, write_a_list, empty, nest_deeply, make_a_folder]


@pytest.mark.parametrize("name", ["record.json", "data.bin"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_said_once_and_made_again(store, log, damage, name):
    before = store.get_or_compute(square, Point(x=2))
    damage(before.folder / name)
    with pytest.warns(UserWarning, match=f"{before.key} is damaged") as said:
        after = Store(store.root).get_or_compute(square, Point(x=2))
    assert len(said) == 1
    assert log() == [2, 2]
    assert (after.rows, after.files) == (before.rows, before.files)
    assert [entry.name for entry in before.folder.parent.iterdir()] == [before.key]


def test_get_sets_a_damaged_record_aside(store):
    record = store.get_or_compute(square, Point(x=2))
    flip_a_bit(record.folder / "data.bin")
    with pytest.raises(StoreError, match="damaged"):
        record.read("data.bin")
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get(square, Point(x=2)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.get(square, Point(x=2)) is None
    assert (record.folder.with_name(f"{record.key}.damaged") / "data.bin").exists()
    assert store.records() == []


def test_every_flipped_bit_of_a_record_is_noticed_or_harmless(store):
    record = store.get_or_compute(square, Point(x=0.1))
    file = record.folder / "record.json"
    content, chance = file.read_bytes(), random.Random(0)
    for _ in range(300):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        assert store.records() in ([], [record])


def test_a_record_in_the_place_of_another_is_damage(store):
    one, two = (store.get_or_compute(square, Point(x=x)) for x in (1, 2))
    (one.folder / "record.json").write_bytes((two.folder / "record.json").read_bytes())
    with pytest.warns(UserWarning, match=f"that of example_steps.square/{two.key}"):
        assert store.get_or_compute(square, Point(x=1)).rows == one.rows


def test_a_failure_is_noted_and_success_takes_the_note_away(store, monkeypatch):
    with pytest.raises(ValueError, match="three is not allowed"):
        store.get_or_compute(picky, Point(x=3))
    [failure] = store.failures(picky)
    assert failure.error == "ValueError: three is not allowed"
    assert failure.settings == {"x": 3.0, "name": ""}
    assert "in picky" in failure.traceback
    assert store.failures() == [failure]
    assert store.failures(square) == store.records() == []
    store.get_or_compute(picky, Point(x=4))
    monkeypatch.setattr("example_steps.picky.__code__", square.__code__)
    store.get_or_compute(picky, Point(x=3))
    assert store.failures() == []


def test_seconds_are_those_of_the_step_alone(store):
    child = store.get_or_compute(sum_of_squares, Point(x=2))
    parents = [record for record in store.records() if record.step == "example_steps.slow"]
    assert child.rows == [{"y": 13.0}]
    assert len(parents) == 2
    assert child.seconds < sum(parent.seconds for parent in parents)


def test_status_of_a_plan(store):
    plan = [(picky, Point(x=x)) for x in (1, 2, 3, 4)]
    for _, settings in [*plan[:2], (None, Point(x=9))]:
        store.get_or_compute(picky, settings)
    with pytest.raises(ValueError, match="three"):
        store.get_or_compute(*plan[2])
    store.get_or_compute(square, Point(x=1))  # a step that the plan does not have is none of its business
    status = store.status(plan + plan[:1])
    assert [record.settings["x"] for record in status.done] == [1, 2]
    assert [failure.settings["x"] for failure in status.failed] == [3]
    assert status.never == [("example_steps.picky", {"x": 4.0, "name": ""})]
    assert [record.settings["x"] for record in status.stale] == [9]
    assert status.size == sum(file.stat().st_size for file in store.root.rglob("*") if file.is_file())
    assert status.size > 4 * 800


def test_a_full_disk_leaves_one_sentence_and_no_trace(store):
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Store(sys.argv[1]).get_or_compute(large, Point(x=1))
except StoreError as error:
    print(error)
"""
    pytest.importorskip("resource")
    code = code.replace("sys.argv[1]", repr(str(store.root)))
    said, errors = run_python(code).communicate()
    assert said == f"Cannot write the record of example_steps.large to the store store: {os.strerror(errno.EFBIG)}.\n"
    assert errors == ""
    assert store.records() == store.failures() == half_made(store) == []
    assert store.get_or_compute(large, Point(x=1)).read("small.bin") == b"s" * 100


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_fault_at_any_write_leaves_no_trace(store, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.get_or_compute(square, Point(x=1))
    assert store.records() == store.failures() == half_made(store) == []


def test_a_parent_that_cannot_be_written_is_no_failure_of_the_child(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(StoreError, match=r"record of example_steps\.slow"):
        store.get_or_compute(sum_of_squares, Point(x=1))
    assert store.failures() == []


def test_two_processes_that_want_one_record_compute_it_once(store, log):
    code = f"print(Store({str(store.root)!r}).get_or_compute(slow, Point(x=2)).rows)"
    both = [run_python(code) for _ in range(2)]
    assert [process.communicate() for process in both] == [("[{'x': 2.0, 'y': 4.0}]\n", "")] * 2
    assert log() == [2]


def test_what_a_killed_run_left_is_removed_by_the_next(store):
    code = f"""
import os, signal
import kbitlib.runs.store as module
module.sync_folder = lambda folder: os.kill(os.getpid(), signal.SIGKILL)  # after all is written, before it is renamed
import kbitlib.runs.record
kbitlib.runs.record.sync_folder = module.sync_folder
Store({str(store.root)!r}).get_or_compute(square, Point(x=1))
"""
    assert run_python(code).wait() == -signal.SIGKILL
    assert half_made(store) == [store.key(square, Point(x=1))]
    assert store.get(square, Point(x=1)) is None
    with store.lock():
        assert half_made(store) == []


def test_a_record_that_another_process_is_making_is_no_leftover(store, log):
    process = run_python(f"Store({str(store.root)!r}).get_or_compute(endless, Point(x=1))")
    while not log():
        time.sleep(0.02)
        assert process.poll() is None
    being_made = store.root / ".work" / next((store.root / ".work").glob("*.lock")).stem
    being_made.mkdir()
    with store.lock():
        assert being_made.exists()
    process.kill()
    process.wait()
    with store.lock():
        assert not being_made.exists()


def test_record_json_is_readable_and_vouches_for_itself(store):
    record = store.get_or_compute(square, Point(x=2))
    content = json.loads((record.folder / "record.json").read_text())
    assert content["files"]["data.bin"] == {"sha256": record.files["data.bin"], "bytes": 800}
    assert set(content) == {"key", "step", "settings", "rows", "seconds", "provenance", "files", "checksum"}

"""The lock of a store: one run at a time, its children included, and none after its death."""

import os
import threading

import pytest
from example_steps import run_python

from kbitlib.runs import Store, StoreBusy

HOLD = """
with Store({root!r}).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(store):
    """A process that holds the lock of the store until it reads a line."""
    process = run_python(HOLD.format(root=str(store.root)))
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_told_who_holds_the_store(store, holder):
    with pytest.raises(
        StoreBusy, match=rf"^Another run holds the store store: process {holder.pid}, since .* UTC \(-c\)"
    ):
        store.lock().__enter__()
    holder.communicate("\n")
    with store.lock():
        pass


def test_a_lock_dies_with_its_holder(store, holder):
    holder.kill()
    holder.wait()
    with store.lock():
        pass


def test_waiting_says_so_once_and_ends_with_the_holder(store, holder, capsys):
    entered = threading.Event()

    def wait():
        with store.lock(wait=True):
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not entered.wait(0.3)
    holder.communicate("\n")
    assert entered.wait(60)
    thread.join()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"process {holder.pid}" in said
    assert said.endswith("waiting until it ends.\n")


def test_descendants_of_the_holder_take_part(store):
    code = f"with Store({str(store.root)!r}).lock(): print('inside')"
    with store.lock():
        assert run_python(code).communicate()[0] == "inside\n"
        with store.lock():
            pass
        alien = {name: value for name, value in os.environ.items() if name != "KBIT_LOCK_HELD"}
        assert "StoreBusy" in run_python(code, env=alien).communicate()[1]
    assert "KBIT_LOCK_HELD" not in os.environ


def test_a_lock_is_of_one_store(store, tmp_path):
    other = Store(tmp_path / "other")
    code = f"with Store({str(other.root)!r}).lock(): print('inside')"
    with store.lock():
        assert run_python(code).communicate()[0] == "inside\n"
        with other.lock():
            alien = {name: value for name, value in os.environ.items() if name != "KBIT_LOCK_HELD"}
            assert "StoreBusy" in run_python(code, env=alien).communicate()[1]


def test_an_error_releases_the_lock(store):
    with pytest.raises(KeyError), store.lock():
        raise KeyError
    assert run_python(f"with Store({str(store.root)!r}).lock(): print('inside')").communicate()[0] == "inside\n"


def test_descendants_know_the_command_of_the_holder(store, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/kbit", "run", "--profile", "smoke"])
    with store.lock():
        monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py"])
        said = run_python("print(provenance()['command'])").communicate()[0]
    assert said == "kbit run --profile smoke\n"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}'])
def test_a_holder_that_does_not_say_who_it_is(store, holder, text):
    (store.root / "holder.json").write_text(text)
    with pytest.raises(StoreBusy, match="it does not say who it is"):
        store.lock().__enter__()

"""How speed is measured: in turns, and by the samples that were least disturbed."""

import json
import subprocess
import sys

import pytest

from kbitlib.experiments import clock
from kbitlib.experiments.clock import in_turns, quiet_median, waited_share, waiting
from kbitlib.experiments.speed import fixed_formats, in_own_process
from kbitlib.quant import Format


def test_actions_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    samples = in_turns([lambda: order.append("a"), lambda: order.append("b")], rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(taken) for taken in samples] == [3, 3]
    assert all(taken >= 0 and waited >= 0 for one in samples for taken, waited in one)


def test_samples_that_waited_for_a_processor_are_left_out() -> None:
    assert quiet_median([(5.0, 4.0), (1.0, 0.0), (1.2, 0.1), (9.0, 8.0), (1.1, 0.0)]) == 1.1
    assert quiet_median([(2.0, 0.0)]) == 2.0


def test_it_is_told_how_long_the_samples_that_count_waited() -> None:
    assert waited_share([(2.0, 1.0), (2.0, 0.0), (9.0, 8.0)]) == 0.25


def test_what_had_to_wait_gets_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"quiet": [], "late": [], "never": []}

    def turns(actions, rounds, device):
        def sample(name: str) -> tuple[float, float]:
            taken[name].append(name)
            waits = {"quiet": 0.0, "late": 1.0 if len(taken["late"]) <= 4 else 0.0, "never": 1.0}
            return 1.0, waits[name]

        return [[sample(action()) for _ in range(rounds)] for action in actions]

    monkeypatch.setattr(clock, "in_turns", turns)
    samples = clock.in_quiet_turns([lambda name=name: name for name in taken], 4)
    assert [len(found) for found in samples] == [4, 8, 12]
    assert waited_share(samples[1]) == 0


def test_waiting_never_runs_backwards() -> None:
    before = waiting()
    assert waiting() >= before >= 0


def test_every_fixed_data_type_is_timed_at_every_width() -> None:
    formats = [Format.parse(name) for name in fixed_formats(range(2, 9))]
    for element in ("int", "nf", "float", "pot", "dynamic"):
        assert {one.k for one in formats if one.element == element} >= set(range(2, 9))
    assert {"binary", "ternary"} <= {one.name for one in formats}


def test_records_say_what_was_measured_on_what() -> None:
    rows = in_own_process("quantize", "--size", "64", "--rounds", "1", "--formats", "int4-b64")
    ours = [row for row in rows if row["implementation"] == "kbitlib"]
    assert [row["task"] for row in ours] == ["quantize", "dequantize"]
    assert {"format", "task", "ms", "size", "rounds", "threads", "processor"} <= set(ours[0])
    assert all(row["ms"] > 0 and row["size"] == 64 for row in rows)


def test_it_needs_no_more_than_torch_and_numpy() -> None:
    heavy = ("pydantic", "pandas", "scipy", "papermill", "matplotlib", "statsmodels")
    script = f"import sys, json, kbitlib.experiments.speed; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_failure_of_the_measuring_process_is_told() -> None:
    with pytest.raises(RuntimeError, match="unknown format"):
        in_own_process("quantize", "--size", "64", "--rounds", "1", "--formats", "int99")

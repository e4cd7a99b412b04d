"""Coverage by the store: in parts, which are pooled."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from kbitlib.experiments import coverage as experiment
from kbitlib.experiments.coverage import Part, measure_coverage
from kbitlib.laws.coverage import CASES
from kbitlib.runs.store import Store


def test_all_cases_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "PART", 2)
    store = Store(tmp_path)
    table = measure_coverage(3, 5, 0, store, "serial")
    assert list(table["case"].unique()) == list(CASES)
    every = table[table["offered"]]
    assert (every["surfaces"] == 3).all()
    assert len(store.records()) == 2 * len(CASES)
    again = measure_coverage(3, 5, 0, store, "serial")
    assert again.equals(table)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        Part(case="30 rows", surfaces=0, resamples=200, seed=0)

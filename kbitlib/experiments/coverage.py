"""How often intervals hold the truth, as a step of the store: a case in parts, so that all cores take part."""

from __future__ import annotations

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from kbitlib.laws.coverage import CASES, coverage, pooled
from kbitlib.runs.store import Result, Store
from kbitlib.runs.sweep import sweep

PART = 50  # surfaces a job


class Part(BaseModel):
    """Some of the surfaces of a case, told apart by their seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    surfaces: int = Field(ge=1)
    resamples: int = Field(ge=1)
    seed: int = Field(ge=0)


def measure_part(settings: Part, store: Store) -> Result:
    """The table of ``laws.coverage`` for these surfaces: a step of the store."""
    rows = coverage(settings.case, settings.surfaces, settings.resamples, settings.seed).to_dict("records")
    return Result(rows=[{str(name): value for name, value in row.items()} for row in rows])


def measure_coverage(surfaces: int, resamples: int, seed: int, store: Store, engine: str) -> pd.DataFrame:
    """The table of all cases, from ``surfaces`` surfaces each; parts have seeds of their own, ``seed`` and on."""
    sizes = [min(PART, surfaces - done) for done in range(0, surfaces, PART)]
    grid = [
        Part(case=case, surfaces=size, resamples=resamples, seed=seed + part)
        for case in CASES
        for part, size in enumerate(sizes)
    ]
    records = sweep(measure_part, grid, store, engine=engine, label="coverage")
    return pooled(pd.DataFrame([row for record in records for row in record.rows]))

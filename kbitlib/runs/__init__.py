"""A function over a grid -> records: get or compute, on any engine, resumed after any fault."""

from kbitlib.runs.progress import Progress, progress_line
from kbitlib.runs.provenance import provenance, source_digest
from kbitlib.runs.store import Failure, Record, Result, Status, Step, Store, StoreBusy, StoreError
from kbitlib.runs.sweep import SweepError, sweep

__all__ = [
    "Failure",
    "Progress",
    "Record",
    "Result",
    "Status",
    "Step",
    "Store",
    "StoreBusy",
    "StoreError",
    "SweepError",
    "progress_line",
    "provenance",
    "source_digest",
    "sweep",
]

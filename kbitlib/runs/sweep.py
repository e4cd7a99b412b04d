"""One step over a grid of settings, on this machine's cores or on a cluster: what is in the store is read, not run."""

import re
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from queue import SimpleQueue

from pydantic import BaseModel

from kbitlib.runs.progress import Meter
from kbitlib.runs.provenance import usable_cores
from kbitlib.runs.record import Record, StoreError
from kbitlib.runs.store import Settings, Step, Store, step_name
from kbitlib.runs.worker import DONE, LOST, UNWRITABLE, Outcome, Worker, compute

ADDRESS = re.compile(r"tcp://[^/\s]+:\d+")


class SweepError(RuntimeError):
    """Some jobs of a sweep failed, all others are in the store; `failures` holds (settings, sentence) of each."""

    def __init__(self, label: str, grid: Sequence[BaseModel], failures: list[tuple[BaseModel, str]]) -> None:
        self.failures = failures
        lines = [f"  {_told_apart(settings, grid)}{sentence}" for settings, sentence in failures]
        super().__init__("\n".join([f"{len(failures)} of {len(grid)} jobs of {label} failed:", *lines]))


def sweep(
    step: Step[Settings],
    grid: Sequence[Settings],
    store: Store,
    *,
    engine: str = "local",
    workers: int | None = None,
    cost: Callable[[Settings], float] | None = None,
    label: str = "",
) -> list[Record]:
    """The records of a step for each settings of a grid, in the grid's order.

    Those that the store has are read; the rest are computed, the costliest first, by `cost(settings)` in any unit.
    engine: "local", one process a core (or `workers` of them), each with one thread; "serial", in this process;
    "tcp://host:port", a Dask scheduler whose workers see the store's folder. Under "local" even a single job gets a
    process of its own: with the same threads it gives the same digits, whether or not a run was interrupted before.

    Raises SweepError at the end when jobs failed; StoreError at once when the store cannot be written; ValueError for
    an unknown engine, a number of workers below one, and a step or settings that no other process can import.
    """
    _check(engine, workers, grid)
    label = label or step_name(step)
    present = {store.key(step, settings): store.get(step, settings) for settings in grid}
    missing = {key: settings for settings in grid if present[key := store.key(step, settings)] is None}
    price = cost or (lambda settings: 1.0)
    jobs = sorted(missing.values(), key=price, reverse=True)
    meter = Meter(store.root, label, len(present) - len(jobs), [price(settings) for settings in jobs])
    failures: list[tuple[BaseModel, str]] = []
    with closing(_run(engine, step, jobs, store, workers)) as ended:
        for settings, (how, sentence) in ended:
            if how == UNWRITABLE:
                raise StoreError(sentence)
            if how == LOST:
                store.record_failure(step, settings, sentence)
            if how != DONE:
                failures.append((settings, sentence))
            meter.count(price(settings), failed=how != DONE)
    if failures:
        raise SweepError(label, grid, failures)
    return [_there(step, settings, store) for settings in grid]


def _check(engine: str, workers: int | None, grid: Sequence[BaseModel]) -> None:
    if engine not in ("local", "serial") and not ADDRESS.fullmatch(engine):
        raise ValueError(f"Engine {engine!r} is unknown: 'local', 'serial' or 'tcp://host:port' are allowed.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    for settings in grid:
        if engine != "serial" and type(settings).__module__ == "__main__":
            raise ValueError(
                f"{type(settings).__name__} is defined in a notebook or script; other processes need it in a module."
            )


def _run(
    engine: str, step: Step[Settings], jobs: list[Settings], store: Store, workers: int | None
) -> Generator[tuple[Settings, Outcome], None, None]:
    """Each job with how it ended, as they end."""
    if not jobs:
        return
    if engine == "serial":
        for settings in jobs:
            yield settings, compute(step, settings, store.root, store.key(step, settings))
    elif engine == "local":
        yield from _on_this_machine(step, jobs, store, min(workers or usable_cores(), len(jobs)))
    else:
        yield from _on_a_cluster(step, jobs, store, engine)


def _on_this_machine(
    step: Step[Settings], jobs: list[Settings], store: Store, workers: int
) -> Generator[tuple[Settings, Outcome], None, None]:
    crew = [Worker(store.root) for _ in range(workers)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def run(settings: Settings) -> Outcome:
        worker = idle.get()
        try:
            return worker.run(step, settings, store.key(step, settings))
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(workers)  # one waits for each process
    try:
        futures = {threads.submit(run, settings): settings for settings in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # also when interrupted in the midst of the jobs
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in crew:
            worker.kill()
        threads.shutdown(wait=True)
        for worker in crew:
            worker.close()


def _on_a_cluster(
    step: Step[Settings], jobs: list[Settings], store: Store, address: str
) -> Generator[tuple[Settings, Outcome], None, None]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError(f"Engine {address!r} needs Dask, which the extra `cluster` installs.") from None
    try:
        client = Client(address, timeout="10s")
    except OSError:  # a time-out is one
        raise ValueError(f"Engine {address!r}: no Dask scheduler answers there.") from None
    with client:
        futures = {
            client.submit(
                compute, step, settings, store.root, store.key(step, settings), pure=False, priority=-place
            ): settings
            for place, settings in enumerate(jobs)
        }
        try:
            for future in as_completed(futures):
                error = future.exception()
                outcome = (LOST, f"Dask gave it up: {type(error).__name__}: {error}") if error else future.result()
                yield futures[future], outcome
        finally:
            client.cancel(list(futures))


def _there(step: Step[Settings], settings: Settings, store: Store) -> Record:
    record = store.get(step, settings)
    if record is None:
        raise StoreError(f"The record {step_name(step)}/{store.key(step, settings)} vanished while the sweep ran.")
    return record


def _told_apart(settings: BaseModel, grid: Sequence[BaseModel]) -> str:
    """`width=24, seed=1: `, the settings that differ within the grid; nothing where none does."""
    dumps = [other.model_dump(mode="json") for other in grid]
    own = settings.model_dump(mode="json").items()
    words = [f"{name}={value}" for name, value in own if any(other.get(name) != value for other in dumps)]
    return f"{', '.join(words)}: " if words else ""

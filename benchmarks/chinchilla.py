"""The Chinchilla law on the 240 published points: its minimum, random starts, 4,000 resamples beside scipy's BFGS, and
10,000 made-up rows, each bar beside what was found.

Run by `make bench`. A bar that is missed is printed as missed; nothing is left out. BFGS is given three gradients of
the published objective (Besiroglu et al. 2024): by autograd, which the published code uses, where it is installed; by
torch; and one written by hand. It is timed on some of the same resamples, from the same start, in the same run
and with the same threads; its time for all of them is extrapolated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize

from kbitlib.laws import fit
from kbitlib.laws.bootstrap import IntArray, draws
from kbitlib.laws.estimate import CONVERGED, Loss, descend, solve
from kbitlib.laws.forms import CHINCHILLA
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

POINTS = Path(__file__).parents[2] / "shared" / "data" / "chinchilla.csv"
OBJECTIVE = 0.00101827402
PARAMETERS = {"E": (1.81722, 2e-4), "A": (477.83, 0.5), "B": (2143.4, 3), "alpha": (0.347311, 1e-4),
              "beta": (0.367172, 1e-4)}  # fmt: skip
PUBLISHED_SD = {"E": 0.0257, "A": 124.5, "B": 1293.0, "alpha": 0.0154, "beta": 0.0206}
STARTS, RESAMPLES, BY_BFGS, ROUNDS = 200, 4000, 40, 5
HUBER = Loss.named("huber", 1e-3)

try:
    import autograd
    import autograd.numpy as anp
except ImportError:
    autograd = None

Objective = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], Any]


def main() -> None:
    ten_thousand_rows()
    if not POINTS.exists():
        print(f"the points of Hoffmann et al. 2022, figure 4, are not there: {POINTS}")
        return
    table = pd.read_csv(POINTS)
    table = table[table["in_epoch_fit"] == 1]
    surface = Surface(CHINCHILLA, {name: table[name].to_numpy() for name in ("params", "tokens")})
    response = table["loss"].to_numpy()
    theta = minimum(surface, response)
    random_starts(surface, response)
    resampled(surface, response, theta)


def ten_thousand_rows() -> None:
    random = np.random.default_rng(0)
    params, tokens = np.exp(random.uniform(15, 23, 10_000)), np.exp(random.uniform(20, 27, 10_000))
    loss = (1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37) * np.exp(0.01 * random.standard_normal(10_000))
    table = pd.DataFrame({"params": params, "tokens": tokens, "loss": loss})
    started = time.perf_counter()
    results = fit(table)
    judge("seconds for a fit to 10,000 rows", time.perf_counter() - started, 2)
    judge("its gradient", results.gradient_norm, CONVERGED)


def minimum(surface: Surface, response: FloatArray) -> FloatArray:
    found = solve(surface, response, HUBER)
    judge("objective of 240 rows, relative to the best known", abs(found.value[0] / OBJECTIVE - 1), 1e-6)
    for name, value in zip(surface.names, surface.natural(found.theta[0]), strict=True):
        best, tolerance = PARAMETERS[name]
        judge(f"{name} = {value:.6g}, off {best:g} by", abs(value - best), tolerance)
    return np.asarray(found.theta[0])


def random_starts(surface: Surface, response: FloatArray) -> None:
    random = np.random.default_rng(0)
    highest = {"E": 2.5, "A": 25, "B": 25, "alpha": 1.5, "beta": 1.5}  # A and B by their logarithms
    theta = np.column_stack(
        [random.uniform(0.5 if name == "E" else 0, highest[name], STARTS) for name in surface.names]
    )
    started = time.perf_counter()
    found = descend(surface, response, HUBER, theta)
    print(f"{STARTS} random starts in {time.perf_counter() - started:.2f} s")
    reached = int((np.abs(found.value / OBJECTIVE - 1) < 1e-6).sum())
    judge(f"of {STARTS} random starts reach the minimum", reached, STARTS, least=True)


def resampled(surface: Surface, response: FloatArray, theta: FloatArray) -> None:
    stream = np.random.RandomState(42)  # the published one
    rows = np.array([stream.choice(240, 240, replace=True) for _ in range(RESAMPLES)])
    gradients: dict[str, tuple[Objective, Objective | bool]] = {
        "torch": (by_torch, True),
        "a gradient by hand": (by_hand, True),
    }
    if autograd is not None:
        gradients = {"autograd": (objective, autograd.grad(objective)), **gradients}
    ours: list[float] = []
    peers: dict[str, list[float]] = {name: [] for name in gradients}
    for part in np.array_split(rows[:BY_BFGS], ROUNDS):  # in turns, so that a busy moment meets all of them
        started = time.perf_counter()
        drawn = draws(surface, response, HUBER, theta, rows=rows)
        ours.append(time.perf_counter() - started)
        for name, (function, gradient) in gradients.items():
            started = time.perf_counter()
            bfgs(function, gradient, surface, response, theta, part)
            peers[name].append((time.perf_counter() - started) / len(part) * RESAMPLES)
    judge("resamples without a minimum", float(np.isnan(drawn).any(axis=1).sum()), 0)
    for name, sd in zip(surface.names, surface.natural(drawn).std(axis=0, ddof=1), strict=True):
        judge(f"bootstrap sd of {name} = {sd:.5g}, off the published {PUBLISHED_SD[name]:g} by a share of",
              abs(sd / PUBLISHED_SD[name] - 1), 0.01)  # fmt: skip
    mine = float(np.median(ours))
    print(f"{RESAMPLES} resamples in {mine:.2f} s (median of {ROUNDS}: {', '.join(f'{s:.2f}' for s in ours)})")
    for name, seconds in peers.items():
        theirs = float(np.median(seconds))
        print(f"BFGS with {name}: {theirs:.1f} s, extrapolated from {BY_BFGS}; {theirs / mine:.0f} times as long")
    reference = next(iter(peers))
    if reference != "autograd":
        print("autograd is not installed (pip install autograd): torch, about twice as fast, stands in for it")
    ratio = float(np.median(peers[reference])) / mine
    judge(f"BFGS with {reference} takes as many times our time", ratio, 100, least=True)
    judge("the target: as many times our time", ratio, 200, least=True)


def bfgs(
    function: Objective,
    gradient: Objective | bool,
    surface: Surface,
    response: FloatArray,
    theta: FloatArray,
    rows: IntArray,
) -> None:
    """Refit each resample as the published code does: logarithms taken on the way, E by its own, scipy's defaults."""
    columns = np.exp(surface.log_columns().to_numpy())
    start = np.concatenate([np.log(theta[:1]), theta[1:]])
    for drawn in rows:
        size, data = columns[drawn].T
        minimize(function, start, args=(size, data, response[drawn]), jac=gradient, method="BFGS")


def objective(theta: FloatArray, size: FloatArray, data: FloatArray, loss: FloatArray) -> float:
    """The published objective, in what autograd can follow."""
    by_size, by_data = anp.exp(theta[1] - theta[3] * anp.log(size)), anp.exp(theta[2] - theta[4] * anp.log(data))
    far = anp.abs(anp.log(by_size + by_data + anp.exp(theta[0])) - anp.log(loss))
    return anp.sum(anp.where(far <= 1e-3, 0.5 * far**2, 1e-3 * (far - 0.5e-3)))


def by_torch(theta: FloatArray, size: FloatArray, data: FloatArray, loss: FloatArray) -> tuple[float, FloatArray]:
    p = torch.tensor(theta, requires_grad=True)
    n, d, y = (torch.from_numpy(values).log() for values in (size, data, loss))
    terms = torch.stack([p[0].expand_as(n), p[1] - p[3] * n, p[2] - p[4] * d])
    residual = torch.logsumexp(terms, dim=0) - y
    value = torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), reduction="sum", delta=1e-3)
    value.backward()
    return value.item(), p.grad.numpy()


def by_hand(theta: FloatArray, size: FloatArray, data: FloatArray, loss: FloatArray) -> tuple[float, FloatArray]:
    n, d = np.log(size), np.log(data)
    parts = np.exp([np.full_like(n, theta[0]), theta[1] - theta[3] * n, theta[2] - theta[4] * d])
    total = parts.sum(axis=0)
    residual = np.log(total) - np.log(loss)
    pull = parts * (HUBER.psi(residual) / total)
    gradient = np.array([*pull.sum(axis=1), -pull[1] @ n, -pull[2] @ d])
    return float(HUBER.rho(residual).sum()), gradient


def judge(what: str, found: float, bar: float, *, least: bool = False) -> None:
    met = found >= bar if least else found <= bar
    print(f"{'met   ' if met else 'MISSED'} {what}: {found:.3g}, bar {'>=' if least else '<='} {bar:g}")


if __name__ == "__main__":
    main()

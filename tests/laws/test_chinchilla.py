"""The Chinchilla law on its published points: random starts, and the published bootstrap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws.bootstrap import draws
from kbitlib.laws.estimate import CONVERGED, Loss, descend, solve
from kbitlib.laws.forms import CHINCHILLA
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray

CSV = Path(__file__).parents[3] / "shared" / "data" / "chinchilla.csv"
HUBER = Loss.named("huber", 1e-3)
OBJECTIVE = 0.00101827402


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    if not CSV.exists():
        pytest.skip(f"the points of Hoffmann et al. 2022, figure 4, are not there: {CSV}")
    return pd.read_csv(CSV)


def bound(table: pd.DataFrame) -> tuple[Surface, FloatArray]:
    columns = {name: table[name].to_numpy(dtype=float) for name in CHINCHILLA.columns}
    return Surface(CHINCHILLA, columns), table["loss"].to_numpy(dtype=float)


def of_240(published: pd.DataFrame) -> tuple[Surface, FloatArray]:
    return bound(published[published["in_epoch_fit"] == 1])


def test_240_rows(published: pd.DataFrame) -> None:
    surface, loss = of_240(published)
    found = solve(surface, loss, HUBER)
    assert found.value[0] == pytest.approx(OBJECTIVE, rel=1e-6)
    assert found.gradient[0] < CONVERGED
    expected = {"E": (1.81722, 2e-4), "A": (477.83, 0.5), "B": (2143.4, 3), "alpha": (0.347311, 1e-4)}
    expected |= {"beta": (0.367172, 1e-4)}
    params = dict(zip(surface.names, surface.natural(found.theta[0]), strict=True))
    for name, (value, tolerance) in expected.items():
        assert params[name] == pytest.approx(value, abs=tolerance)
    assert params["beta"] / (params["alpha"] + params["beta"]) == pytest.approx(0.51390, abs=1e-4)


def test_all_245_rows(published: pd.DataFrame) -> None:
    surface, loss = bound(published)
    params = surface.natural(solve(surface, loss, HUBER).theta[0])
    assert params == pytest.approx([1.8913, 495.7, 12846, 0.3493, 0.4530], rel=2e-4)


def test_plain_least_squares_below_1e21_flops(published: pd.DataFrame) -> None:
    rows = published[(published["in_epoch_fit"] == 1) & (published["flops"] < 1e21)]
    surface, loss = bound(rows.assign(params=rows["params"] / 1e6, tokens=rows["tokens"] / 1e9))
    plain = Loss.named("squared", np.inf)
    found = solve(surface, loss, plain)
    assert surface.rows == 217
    assert surface.natural(found.theta[0]) == pytest.approx([1.9051, 4.0005, 1.0509, 0.3511, 0.4587], abs=6e-5)
    assert plain.objective(found.value)[0] == pytest.approx(0.062414, abs=1e-6)


def test_all_of_200_random_starts_reach_the_minimum(published: pd.DataFrame) -> None:
    surface, loss = of_240(published)
    random = np.random.default_rng(0)
    low = {"E": 0.5, "A": 0.0, "B": 0.0, "alpha": 0.0, "beta": 0.0}  # A and B by their logarithms
    high = {"E": 2.5, "A": 25.0, "B": 25.0, "alpha": 1.5, "beta": 1.5}
    starts = np.column_stack([random.uniform(low[name], high[name], 200) for name in surface.names])
    found = descend(surface, loss, HUBER, starts)
    assert found.value == pytest.approx(np.full(200, OBJECTIVE), rel=1e-6)
    assert (found.gradient < CONVERGED).all()


def test_the_published_stream_gives_the_published_bootstrap(published: pd.DataFrame) -> None:
    surface, loss = of_240(published)
    stream = np.random.RandomState(42)  # what np.random.seed(42) begins
    rows = np.array([stream.choice(240, 240, replace=True) for _ in range(4000)])
    drawn = draws(surface, loss, HUBER, solve(surface, loss, HUBER).theta[0], rows=rows)
    assert np.isfinite(drawn).all()
    natural = pd.DataFrame(surface.natural(drawn), columns=surface.names)
    published_sd = {"E": 0.0257, "A": 124.5, "B": 1293.0, "alpha": 0.0154, "beta": 0.0206}
    assert natural.std().to_dict() == pytest.approx(published_sd, rel=0.01)
    ends = natural.quantile([0.025, 0.975])
    assert ends["alpha"].to_numpy() == pytest.approx([0.317, 0.373], abs=0.006)
    assert ends["beta"].to_numpy() == pytest.approx([0.331, 0.415], abs=0.006)

"""Prediction of a size left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import NotIdentified, fit, leave_one_size_out

Simulate = Callable[..., pd.DataFrame]


def test_an_exact_law_predicts_without_error(family: Simulate) -> None:
    table = family(seeds=(1, 1, 1, 1, 1, 1))
    exact = table.assign(loss=8 * table["total_bits"] ** (-0.02 * table["k"]))
    errors = leave_one_size_out(exact, "total-bits")
    assert list(errors.index) == ["w24-d2", "w32-d3", "w48-d3", "w64-d4", "w96-d5", "w128-d6"]
    assert errors["rmse_log"].max() < 1e-10
    assert set(errors["nobs"]) == {7}


def test_the_error_is_that_of_a_fit_without_the_size(family: Simulate) -> None:
    table = family().rename(columns={"loss": "nats"})
    held_out = table["model"] == "w128-d6"
    results = fit(table[~held_out], "total-bits", columns={"loss": "nats"})
    residual = np.log(table.loc[held_out, "nats"] / results.predict(table[held_out]))
    errors = leave_one_size_out(table, "total-bits", columns={"loss": "nats"}).loc["w128-d6"]
    assert errors["rmse_log"] == pytest.approx(np.sqrt((residual**2).mean()))
    assert errors["bias_log"] == pytest.approx(residual.mean())


def test_a_law_that_hangs_on_one_size_is_refused(family: Simulate) -> None:
    table = family()
    with pytest.raises(NotIdentified):
        leave_one_size_out(table[table["model"].isin(["w24-d2", "w32-d3"])], "total-bits")

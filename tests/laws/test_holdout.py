"""Prediction of a size left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kbitlib.laws import NotIdentified, fit, leave_one_size_out
from kbitlib.laws.holdout import largest_size_out, predict_size

Simulate = Callable[..., pd.DataFrame]


def test_an_exact_law_predicts_without_error(family: Simulate) -> None:
    table = family(seeds=(1, 1, 1, 1, 1, 1))
    exact = table.assign(loss=8 * table["total_bits"] ** (-0.02 * table["k"]))
    errors = leave_one_size_out(exact, "total-bits")
    assert list(errors.index) == ["w24-d2", "w32-d3", "w48-d3", "w64-d4", "w96-d5", "w128-d6"]
    assert errors["rmse_log"].max() < 1e-10
    assert set(errors["nobs"]) == {7}
    assert set(errors["reason"]) == {""}


def test_the_error_is_that_of_a_fit_without_the_size(family: Simulate) -> None:
    table = family().rename(columns={"loss": "nats"})
    held_out = table["model"] == "w128-d6"
    results = fit(table[~held_out], "total-bits", columns={"loss": "nats"})
    residual = np.log(table.loc[held_out, "nats"] / results.predict(table[held_out]))
    errors = leave_one_size_out(table, "total-bits", columns={"loss": "nats"}).loc["w128-d6"]
    assert errors["rmse_log"] == pytest.approx(np.sqrt((residual**2).mean()))
    assert errors["bias_log"] == pytest.approx(residual.mean())


def test_the_largest_size_is_found_by_the_laws_own_column(family: Simulate) -> None:
    table = family().rename(columns={"params": "N"}).sample(frac=1, random_state=0)
    four = table[table["k"] == 4]
    rows = largest_size_out(four, "power", columns={"params": "N"}, level=0.8)
    assert set(rows.pop("model")) == {"w128-d6"}
    assert list(rows.index) == list(four.index[four["model"] == "w128-d6"])
    same = predict_size(four, "power", "w128-d6", columns={"params": "N"}, level=0.8)
    pd.testing.assert_frame_equal(rows, same)
    assert (rows["inside"] == rows["observed"].between(rows["low"], rows["high"])).all()


def test_ninety_percent_intervals_hold_nine_tenths_of_the_models_left_out() -> None:
    """Six models whose seeds shift all k of a model together: the next size up, at one k, in 200 such families."""
    random, held = np.random.default_rng(0), 0
    factors = {3: 0.5, 4: 0.8, 8: 1.0}
    for _ in range(200):
        shifts = dict(zip(np.geomspace(1e4, 1e6, 6), 0.02 * random.standard_normal(6), strict=True))
        rows = [
            (f"{n:g}", k, n * k, 9 * (n * f) ** -0.1 * np.exp(s)) for n, s in shifts.items() for k, f in factors.items()
        ]
        table = pd.DataFrame(rows, columns=["model", "k", "total_bits", "loss"])
        table["loss"] *= np.exp(0.004 * random.standard_normal(len(table)))
        held += int(largest_size_out(table, "total-bits")["inside"].iloc[0])
    assert stats.binomtest(held, 200, 0.9).pvalue > 0.01


def test_a_size_without_which_the_law_is_not_identified_is_a_row_that_says_so(family: Simulate) -> None:
    table = family()
    errors = leave_one_size_out(table[table["model"].isin(["w24-d2", "w32-d3"])], "total-bits")
    assert errors["rmse_log"].isna().all()
    assert errors["reason"].str.contains("not identified").all()


def test_a_size_with_a_k_of_its_own_is_a_row_that_says_so(family: Simulate) -> None:
    table = family()
    full = table[table["k"] == 8].assign(k=16.0, total_bits=lambda rows: 2 * rows["total_bits"])
    alone = table[(table["k"] != 3) | (table["model"] == "w24-d2")]
    errors = leave_one_size_out(pd.concat([alone, full]), "effective-parameters")
    assert "k = 3 was not among the rows fitted" in errors.loc["w24-d2", "reason"]
    assert errors["reason"].eq("").sum() == 5


def test_a_table_that_cannot_be_fitted_at_all_is_refused(family: Simulate) -> None:
    table = family()
    with pytest.raises(NotIdentified):
        leave_one_size_out(table[table["model"] == "w24-d2"], "total-bits")
    with pytest.raises(ValueError, match="column 'size' is missing"):
        leave_one_size_out(table, "total-bits", by="size")


def test_intervals_of_independent_rows_hold_nine_tenths_of_the_sizes_beyond() -> None:
    """Six sizes of one row each: the next one, four times as large, in 400 such families."""
    random, held = np.random.default_rng(0), 0
    sizes = np.geomspace(1e5, 1e8, 7)
    for _ in range(400):
        loss = 12 * sizes**-0.1 * np.exp(0.01 * random.standard_normal(7))
        table = pd.DataFrame({"model": [f"{n:g}" for n in sizes], "params": sizes, "loss": loss})
        held += int(largest_size_out(table, "power")["inside"].iloc[0])
    assert stats.binomtest(held, 400, 0.9).pvalue > 0.01

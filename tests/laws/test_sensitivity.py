"""How far a fit rests on choices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import NotIdentified, fit
from kbitlib.laws.sensitivity import HUBER_DELTAS, sensitivity

Simulate = Callable[..., pd.DataFrame]


def test_every_line_is_the_fit_that_it_names(family: Simulate) -> None:
    table = family().assign(params=lambda rows: rows["params_nonemb"] + 12_000).query("k == 4")
    lines = sensitivity(table, "power")
    assert lines.loc[("as asked", ""), "alpha"] == pytest.approx(fit(table, "power").params["alpha"])
    huber = fit(table, "power", loss="huber", huber_delta=1e-2)
    assert lines.loc[("loss", "huber 0.01"), "alpha"] == pytest.approx(huber.params["alpha"])
    without = table[table["model"] != "w24-d2"]
    assert lines.loc[("rows", "without w24-d2 (smallest)"), "alpha"] == pytest.approx(
        fit(without, "power").params["alpha"]
    )
    assert lines.loc[("rows", "without w24-d2 (smallest)"), "nobs"] == len(without)
    counted = fit(table, "power", columns={"params": "params_nonemb"})
    assert lines.loc[("params", "params_nonemb"), "alpha"] == pytest.approx(counted.params["alpha"])


def test_every_choice_has_its_line(family: Simulate) -> None:
    table = family().assign(total_bits_all=lambda rows: rows["total_bits"] + 16 * 12_000).query("k >= 3")
    lines = sensitivity(table, "total-bits")
    values = lines.index.to_frame(index=False).groupby("choice")["value"].apply(list)
    assert values["loss"] == [f"huber {delta:g}" for delta in HUBER_DELTAS] + ["log-squared"]
    assert values["rows"][0] == "without w24-d2 (smallest)"
    assert values["rows"][-1] == "without w128-d6 (largest)"
    assert len(values["rows"]) == 6
    assert values["total_bits"] == ["total_bits", "total_bits_all"]
    assert "params" not in values


def test_shift_is_in_standard_errors_of_the_parameters_as_estimated(family: Simulate) -> None:
    table = family().query("k == 4")
    lines, base = sensitivity(table, "power"), fit(table, "power")
    other = fit(table[table["model"] != "w64-d4"], "power")
    error = np.sqrt(np.diag(base.uncertainty.covariance))
    shift = np.abs(np.log(other.params["A"] / base.params["A"])) / error[0]
    shift = max(shift, abs(other.params["alpha"] - base.params["alpha"]) / error[1])
    assert lines.loc[("rows", "without w64-d4"), "shift"] == pytest.approx(shift)
    assert lines.loc[("as asked", ""), "shift"] == 0
    assert np.isnan(lines.loc[("params", "params_nonemb"), "shift"])


def test_a_choice_that_leaves_the_law_unidentified_is_a_line_that_says_so(family: Simulate) -> None:
    table = family(seeds=(1, 1, 0, 0, 0, 0)).query("k == 4")
    line = sensitivity(table, "power").loc[("rows", "without w24-d2 (smallest)")]
    assert "not identified" in line["reason"]
    assert np.isnan(line["alpha"])


def test_a_law_that_cannot_be_fitted_as_asked_is_refused(family: Simulate) -> None:
    with pytest.raises(NotIdentified):
        sensitivity(family().query("model == 'w24-d2'"), "power")

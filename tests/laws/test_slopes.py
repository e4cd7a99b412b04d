"""The slope of log loss on log total bits, k by k."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from kbitlib.laws import total_bits_slopes

Simulate = Callable[..., pd.DataFrame]


def test_slopes_with_seeds_are_clustered_by_model(family: Simulate) -> None:
    table = family()
    slopes = total_bits_slopes(pd.concat([table, table.assign(element="nf", loss=5.0)]))
    assert list(slopes.index) == [2, 3, 4, 5, 6, 7, 8]
    assert set(slopes["covariance"]) == {"CR3 by model, t(5)"}
    rows = table[table["k"] == 4]
    expected = np.polyfit(np.log(rows["total_bits"]), np.log(rows["loss"]), 1)[0]
    assert slopes.loc[4, "slope"] == pytest.approx(expected)
    assert slopes.loc[4, "nobs"] == 15
    assert slopes.loc[4, "models"] == 6


def test_slopes_without_seeds_are_hc3(family: Simulate) -> None:
    table = family(seeds=(1, 1, 1, 1, 1, 1))
    slopes = total_bits_slopes(table)
    rows = table[table["k"] == 3]
    ols = sm.OLS(np.log(rows["loss"]), sm.add_constant(np.log(rows["total_bits"]))).fit(cov_type="HC3", use_t=True)
    assert slopes.loc[3, ["low", "high"]].to_list() == pytest.approx(ols.conf_int().iloc[1].to_list())
    assert slopes.loc[3, "covariance"] == "HC3, t(4)"


def test_too_few_models_are_refused(family: Simulate) -> None:
    table = family()
    with pytest.raises(ValueError, match="k = 2 has 2 models; at least three are needed"):
        total_bits_slopes(table[table["model"].isin(["w24-d2", "w32-d3"])])

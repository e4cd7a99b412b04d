"""CR3: equal to the jackknife it abbreviates, and level with six models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from kbitlib.laws import cluster_robust
from kbitlib.laws.clusters import components, cr3_covariance, intercept_covariance, intercept_freedom


def clustered(random: np.random.Generator, models: int = 6, rows: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups = np.repeat(np.arange(models), rows)
    design = np.column_stack([np.ones(models * rows), np.repeat(random.uniform(9, 14, models), rows)])
    response = design @ [1.0, -0.1] + np.repeat(0.05 * random.standard_normal(models), rows)
    return design, response + 0.01 * random.standard_normal(models * rows), groups


def test_cr3_is_the_cluster_jackknife() -> None:
    design, response, groups = clustered(np.random.default_rng(0))
    whole = np.linalg.lstsq(design, response)[0]
    parts = np.array([np.linalg.lstsq(design[groups != g], response[groups != g])[0] for g in range(6)])
    expected = 5 / 6 * (parts - whole).T @ (parts - whole)
    assert cr3_covariance(design, response - design @ whole, groups) == pytest.approx(expected)


def test_one_row_a_group_is_hc3() -> None:
    design, response, _ = clustered(np.random.default_rng(1), models=20, rows=1)
    ols = sm.OLS(response, design).fit(cov_type="HC3")
    expected = np.asarray(ols.cov_params()) * 19 / 20
    assert cr3_covariance(design, ols.resid, np.arange(20)) == pytest.approx(expected)


def test_the_table_has_t_intervals() -> None:
    design, response, groups = clustered(np.random.default_rng(2))
    ols = sm.OLS(response, pd.DataFrame(design, columns=["const", "log_params"])).fit()
    table = cluster_robust(ols, groups)
    row = table.loc["log_params"]
    assert row["coef"] == pytest.approx(ols.params["log_params"])
    assert row["high"] - row["coef"] == pytest.approx(stats.t.ppf(0.975, 5) * row["std err"])
    assert cluster_robust(ols, groups, level=0.5).loc["log_params", "high"] < row["high"]


def test_intervals_keep_their_level_with_six_models() -> None:
    random = np.random.default_rng(3)
    held = {"CR3": 0, "independent rows": 0}
    for _ in range(300):
        design, response, groups = clustered(random)
        ols = sm.OLS(response, pd.DataFrame(design, columns=["const", "slope"])).fit()
        row = cluster_robust(ols, groups).loc["slope"]
        held["CR3"] += row["low"] <= -0.1 <= row["high"]
        low, high = ols.conf_int().loc["slope"]
        held["independent rows"] += low <= -0.1 <= high
    assert 272 <= held["CR3"] <= 298
    assert held["independent rows"] < 225


def test_what_cr3_cannot_do_is_refused() -> None:
    design, response, groups = clustered(np.random.default_rng(4))
    with pytest.raises(ValueError, match="at least two groups; 1 is given"):
        cr3_covariance(design, response, np.zeros(42))
    alone = np.column_stack([design, groups == 2])
    with pytest.raises(ValueError, match="hangs on group 2 alone"):
        cr3_covariance(alone, response, groups)


# --- variance components ---


def test_components_of_a_balanced_design_are_restricted_maximum_likelihood() -> None:
    design, response, groups = clustered(np.random.default_rng(5), models=8)
    residual = response - design @ np.linalg.lstsq(design, response)[0]
    found = components(design, residual, groups)
    own = sm.MixedLM(100 * response, design, groups).fit(reml=True)  # in hundredths: it stops early on small numbers
    assert found.within == pytest.approx(own.scale / 1e4, rel=1e-3)
    assert found.between == pytest.approx(own.cov_re[0, 0] / 1e4, rel=1e-2)
    assert found.freedom == pytest.approx(8 - 2)
    errors = np.sqrt(np.diag(intercept_covariance(design, found, groups)))
    assert errors == pytest.approx(own.bse_fe / 100, rel=1e-2)


def test_freedom_is_that_of_groups_or_of_rows() -> None:
    random = np.random.default_rng(6)
    design, response, groups = clustered(random)
    design = np.column_stack([design, np.tile(np.linspace(-1, 1, 7), 6)])  # differs within models alone
    found = components(design, response - design @ np.linalg.lstsq(design, response)[0], groups)
    between, _, within = intercept_freedom(design, found, groups)
    assert between == pytest.approx(4, rel=0.1)
    assert found.spare == 42 - 6 - 1
    assert 30 < within < 36


def test_components_are_unbiased() -> None:
    random = np.random.default_rng(7)
    found = []
    for _ in range(300):
        design, response, groups = clustered(random)
        found.append(components(design, response - design @ np.linalg.lstsq(design, response)[0], groups))
    assert np.mean([f.between for f in found]) == pytest.approx(0.05**2, rel=0.12)
    assert np.mean([f.within for f in found]) == pytest.approx(0.01**2, rel=0.05)


def test_a_design_that_takes_every_group_leaves_no_components() -> None:
    design, response, groups = clustered(np.random.default_rng(8), models=2)
    found = components(design, response - design @ np.linalg.lstsq(design, response)[0], groups)
    assert found.freedom == 0
    assert np.isnan(found.between)

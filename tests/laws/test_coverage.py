"""Intervals that are offered hold the truth at their level, on few surfaces; `make bench` tries 500."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kbitlib.laws.coverage import CASES, coverage, pooled
from kbitlib.laws.intervals import KINDS

RARE = 0.001  # how often a kind of exactly the nominal level would fail a test here


def worst(table: pd.DataFrame, loss: str, kind: str) -> float:
    """The smallest p-value of a kind, Bonferroni-corrected for its parameters."""
    rows = table[(table["loss"] == loss) & (table["kind"] == kind)]
    return float(min(rows["p_value"].min() * len(rows), 1.0))


@pytest.fixture(scope="module")
def few_rows() -> pd.DataFrame:
    return coverage("30 rows", 60, 200)


def test_offered_kinds_hold_on_few_rows(few_rows: pd.DataFrame) -> None:
    for loss, kind in few_rows.loc[few_rows["offered"], ["loss", "kind"]].drop_duplicates().itertuples(index=False):
        assert worst(few_rows, loss, kind) > RARE, (loss, kind)


def test_by_hubers_loss_the_sandwich_is_refused_with_its_reason(few_rows: pd.DataFrame) -> None:
    row = few_rows[(few_rows["loss"] == "huber") & (few_rows["kind"] == "sandwich")].iloc[0]
    assert not row["offered"]
    assert "Huber's loss is no sum of squares" in row["refusal"]


def test_of_models_the_offered_kinds_hold() -> None:
    table = coverage("six models by seven k", 200, 1)
    assert set(table.loc[table["offered"], "kind"]) == {"cr3", "random-effects"}
    for kind in ("cr3", "random-effects"):
        assert worst(table, "log-squared", kind) > RARE, kind
    iid = table[(table["loss"] == "log-squared") & (table["kind"] == "delta")]
    assert iid["rate"].mean() < 0.94


def test_where_all_k_share_a_curve_independent_rows_are_far_too_narrow() -> None:
    table = coverage("six models, one curve", 40, 10).set_index(["loss", "kind", "parameter"])
    assert table.loc[("log-squared", "delta", "alpha"), "rate"] < 0.85
    for kind in ("cr3", "random-effects"):
        assert table.loc[("log-squared", kind, "alpha"), "rate"] > 0.85
    assert table.loc[("log-squared", "cluster-bootstrap", "alpha"), "surfaces"] == 4


def test_nearly_collinear_leaves_the_profile() -> None:
    table = coverage("nearly collinear", 60, 5)
    assert set(table.loc[table["offered"], "kind"]) == {"profile-f"}
    assert worst(table, "log-squared", "profile-f") > RARE


def test_the_same_seed_gives_the_same_table() -> None:
    first, again, other = (coverage("six models by seven k", 20, 1, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["covered"].equals(other["covered"])


def test_parts_are_pooled() -> None:
    parts = [coverage("six models by seven k", 30, 1, seed=seed) for seed in (0, 1)]
    table = pooled(pd.concat(parts))
    assert (table["surfaces"] == 60).all()
    assert table["covered"].to_numpy() == pytest.approx((parts[0]["covered"] + parts[1]["covered"]).to_numpy())
    row = table.iloc[0]
    assert row["rate"] == row["covered"] / 60
    assert row["p_value"] == pytest.approx(stats.binomtest(int(row["covered"]), 60, 0.95).pvalue)


def test_every_kind_is_measured_somewhere() -> None:
    tried = set().union(*(set(coverage(case, 1, 5)["kind"]) for case in CASES))
    assert tried == set(KINDS)


def test_responses_have_the_noise_that_the_case_says() -> None:
    case = CASES["six models by seven k"]()
    noise = np.log(case.responses(2000, np.random.default_rng(0))) - case.surface.log_mean(case.theta)
    together = np.corrcoef(noise[:, case.groups == case.groups[0]].T)
    assert together[np.triu_indices(7, 1)].mean() == pytest.approx(0.005**2 / (0.005**2 + 0.002**2), abs=0.02)


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(
        ValueError, match="case '31 rows' is unknown; 240 rows, 30 rows, nearly collinear, six models by"
    ):
        coverage("31 rows")

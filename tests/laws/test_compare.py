"""Laws are chosen by sizes left out, with ties called ties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from kbitlib.laws import leave_one_size_out
from kbitlib.laws.compare import compare

Simulate = Callable[..., pd.DataFrame]


def runs(noise: float = 0.002, random_state: int = 0) -> pd.DataFrame:
    """Eight sizes by six counts of tokens of a Chinchilla law; rows are independent."""
    random = np.random.default_rng(random_state)
    params, tokens = map(np.ravel, np.meshgrid(np.geomspace(1e7, 1e10, 8), np.geomspace(1e9, 1e12, 6), indexing="ij"))
    loss = 1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37
    table = pd.DataFrame({"params": params, "tokens": tokens, "flops": 6 * params * tokens})
    return table.assign(model=params.astype(str), loss=loss * np.exp(noise * random.standard_normal(48)))


def power_runs() -> pd.DataFrame:
    """A power law of params alone, with tokens and flops that have no part in it."""
    random = np.random.default_rng(1)
    table = runs().assign(flops=lambda rows: rows["flops"] * np.exp(random.standard_normal(48)))
    return table.assign(loss=9 * table["params"] ** -0.1 * np.exp(0.01 * random.standard_normal(48)))


def test_the_law_that_made_the_rows_is_the_best() -> None:
    found = compare(runs(), ["power", "kaplan", "chinchilla"], groups=None, loss="log-squared")
    assert found.table.index[0] == "chinchilla"
    assert dict(found.table["verdict"]) == {"chinchilla": "best", "kaplan": "worse", "power": "worse"}
    assert found.table.loc["chinchilla", "rmse"] < 0.005
    assert (found.table.loc[["kaplan", "power"], "p_value"] < 1e-4).all()
    assert found.table["aicc"].idxmin() == "chinchilla"


def test_errors_are_those_of_the_sizes_left_out_with_t_intervals() -> None:
    table = runs()
    found = compare(table, ["power", "chinchilla"], groups=None)
    sizes = leave_one_size_out(table, "power", groups=None)["rmse_log"]
    line = found.table.loc["power"]
    interval = stats.t.interval(0.95, 7, sizes.mean(), sizes.sem())
    assert line[["rmse", "low", "high"]].to_list() == pytest.approx([sizes.mean(), *interval])
    assert line["largest"] == pytest.approx(sizes[table.loc[table["params"].idxmax(), "model"]])
    gap = found.by_size["power"] - found.by_size["chinchilla"]
    assert line["difference"] == pytest.approx(gap.mean())
    assert line["difference_low"] == pytest.approx(stats.t.interval(0.95, 7, gap.mean(), gap.sem())[0])


def test_a_law_with_terms_that_play_no_part_is_a_tie_and_said_to_be() -> None:
    found = compare(power_runs(), ["power", "tutorial"], groups=None)
    assert set(found.table["verdict"]) == {"best", "tied with best"}
    assert any(
        "power and tutorial cannot be told apart" in s or "tutorial and power cannot" in s for s in found.sentences
    )


def test_criteria_are_those_of_statsmodels() -> None:
    table = power_runs()
    found = compare(table, ["power", "tutorial"], groups=None).table
    logs = np.log(table[["params", "tokens", "flops"]])
    small = sm.OLS(np.log(table["loss"]), sm.add_constant(logs[["params"]])).fit()
    large = sm.OLS(np.log(table["loss"]), sm.add_constant(logs)).fit()
    for law, theirs in (("power", small), ("tutorial", large)):
        count = theirs.df_model + 2  # the constant and the variance
        aicc = -2 * theirs.llf + 2 * count + 2 * count * (count + 1) / (48 - count - 1)
        assert found.loc[law, "aicc"] == pytest.approx(aicc)
    other = found.index[1]
    assert found.loc[other, "p_value"] == pytest.approx(large.compare_lr_test(small)[1], rel=1e-6)
    assert abs(found.loc[other, "log_likelihood_ratio"]) == pytest.approx(large.llf - small.llf)


def test_rows_of_one_model_have_no_criteria(family: Simulate) -> None:
    found = compare(family(), ["total-bits", "power"])
    assert found.table[["aicc", "log_likelihood_ratio", "p_value"]].isna().all(axis=None)
    assert any("no AICc" in sentence for sentence in found.sentences)


def test_the_noise_floor_is_the_spread_between_seeds(family: Simulate) -> None:
    table = family(seeds=(4,) * 6)
    logs = np.log(table["loss"])
    within = logs - logs.groupby([table["model"], table["k"]]).transform("mean")
    found = compare(table, ["total-bits", "power"])
    assert found.noise_floor == pytest.approx(np.sqrt((within**2).sum() / (6 * 7 * 3)))
    assert compare(family(seeds=(1,) * 6), ["total-bits", "power"]).noise_floor is None


def test_a_difference_within_the_noise_of_seeds_is_a_tie_however_sure() -> None:
    table = runs()
    assert compare(table, ["kaplan", "chinchilla"], groups=None).table.loc["kaplan", "verdict"] == "worse"
    seeds = [table.assign(seed=seed, loss=table["loss"] * (1 + shift)) for seed, shift in enumerate([-0.3, 0.3])]
    found = compare(pd.concat(seeds, ignore_index=True), ["kaplan", "chinchilla"], groups=None, loss="log-squared")
    line = found.table.iloc[1]
    assert 0 < line["difference_low"] < line["difference"] < (found.noise_floor or 0.0) / np.sqrt(len(found.by_size))
    assert line["verdict"] == "tied with best"


def test_paired_gaps_put_laws_of_the_loss_beside_those_of_degradation(family: Simulate) -> None:
    table = family(delta_sd=0.02).query("k <= 6")
    found = compare(table, ["degradation", "total-bits"], columns={"loss": "delta"})
    assert set(found.table.index) == {"degradation", "total-bits"}
    with pytest.raises(ValueError, match=r"laws of different columns cannot be compared \(degradation of delta, power"):
        compare(table, ["degradation", "power"])


def test_a_law_that_the_rows_do_not_identify_is_a_line_that_says_why() -> None:
    found = compare(runs(), ["power", "tutorial"], groups=None)
    assert found.table.loc["tutorial", "verdict"] == "not comparable"
    assert "not identified" in found.table.loc["tutorial", "reason"]
    assert found.table.loc["power", "verdict"] == "best"


@pytest.mark.parametrize(
    ("laws", "message"),
    [(["power"], "1 laws on 8 sizes cannot be compared"), (["power", "cubic"], "law 'cubic' is unknown")],
)
def test_bad_input_is_refused(laws: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(runs(), laws)


def test_too_few_sizes_are_refused() -> None:
    table = runs()
    with pytest.raises(ValueError, match="2 laws on 1 sizes cannot be compared"):
        compare(table[table["model"] == table["model"].iloc[0]], ["power", "kaplan"])
    with pytest.raises(ValueError, match="no law predicts two of the sizes"):
        compare(table[table["params"] < 3e7], ["power", "tutorial"])

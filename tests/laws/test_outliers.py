"""Rows that stand out are flagged with a reason, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from kbitlib.laws import fit
from kbitlib.laws.outliers import COOK, K_ORDER, LEVERAGE, REASONS, RESIDUAL, SIZE_ORDER, flag

DATA = Path(__file__).parents[3] / "shared" / "data"


def given(name: str) -> pd.DataFrame:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not here: it is given to this project's sessions, not part of it")
    return pd.read_csv(DATA / name)


def rows_of_a_power_law(random_state: int = 0, rows: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(random_state)
    params = np.exp(random.uniform(14, 20, rows))
    return pd.DataFrame({"params": params, "loss": 9 * params**-0.1 * np.exp(0.01 * random.standard_normal(rows))})


def family_of_bits() -> pd.DataFrame:
    """Eight sizes by five k, a law of effective parameters with noise of .5 %."""
    random = np.random.default_rng(0)
    sizes, levels = np.geomspace(1e5, 1e8, 8), {2: 0.2, 3: 0.6, 4: 0.85, 8: 0.99, 16: 1.0}
    lines = [(size, k, 1.5 + 40 * (size * f) ** -0.25) for size in sizes for k, f in levels.items()]
    table = pd.DataFrame(lines, columns=["params", "k", "loss"])
    return table.assign(loss=table["loss"] * np.exp(0.005 * random.standard_normal(len(table))))


def reasons(flagged: pd.DataFrame) -> set[tuple[object, str]]:
    return set(zip(flagged["row"], flagged["reason"], strict=True))


def test_a_planted_outlier_is_the_one_residual_flagged() -> None:
    table = rows_of_a_power_law().set_index(pd.Index([f"run {i}" for i in range(60)]))
    table.loc["run 17", "loss"] *= 1.08
    flagged = flag(fit(table, "power"))
    assert list(flagged.loc[flagged["reason"] == RESIDUAL, "row"]) == ["run 17"]
    assert set(flagged["reason"]) <= set(REASONS)
    assert (flagged["value"] > flagged["limit"]).all()


def test_outliers_do_not_hide_one_another() -> None:
    table = rows_of_a_power_law()
    largest = table["params"].nlargest(6).index
    table.loc[largest, "loss"] *= 1.1
    results = fit(table, "power")
    assert set(largest) <= set(flag(results).query("reason == @RESIDUAL")["row"])
    alone = results.ols.get_influence().resid_studentized_external  # least squares is pulled, and sees fewer
    assert (np.abs(alone[largest]) > 3.5).sum() < 6


def test_normal_noise_is_seldom_flagged() -> None:
    flagged = [RESIDUAL in set(flag(fit(rows_of_a_power_law(i), "power"))["reason"]) for i in range(100)]
    assert np.mean(flagged) < 0.12  # 5 % if the scale were known


def test_ten_thousand_rows_of_noise_are_in_order() -> None:
    assert SIZE_ORDER not in set(flag(fit(rows_of_a_power_law(rows=10_000), "power"))["reason"])


def test_leverage_is_that_of_statsmodels() -> None:
    table = rows_of_a_power_law()
    table.loc[3, "params"] = 1e13
    table.loc[3, "loss"] = 9 * 1e13**-0.1
    results = fit(table, "power")
    flagged = flag(results).query("reason == @LEVERAGE").set_index("row")["value"]
    hat = sm.OLS(np.log(table["loss"]), sm.add_constant(np.log(table["params"]))).fit().get_influence().hat_matrix_diag
    assert 3 in flagged.index
    assert flagged.to_numpy() == pytest.approx(hat[flagged.index])
    assert set(flagged.index) == set(np.flatnonzero(hat > 6 / 60))


def test_a_row_out_of_order_is_the_one_that_the_law_fits_worse() -> None:
    table = family_of_bits()
    spoiled = table[(table["k"] == 4) & (table["params"] > 2e6)].index[0]
    table.loc[spoiled, "loss"] *= 1.3  # above smaller models at 4 bits, and above 3 bits at its own size
    flagged = reasons(flag(fit(table, "effective-parameters")))
    assert {(spoiled, SIZE_ORDER), (spoiled, K_ORDER), (spoiled, RESIDUAL)} <= flagged
    assert {row for row, reason in flagged if reason in (SIZE_ORDER, K_ORDER)} == {spoiled}


def test_a_row_that_is_too_good_is_the_one_flagged() -> None:
    table = family_of_bits()
    spoiled = table[(table["k"] == 4) & (table["params"] < 2e5)].index[0]
    table.loc[spoiled, "loss"] *= 0.6
    flagged = reasons(flag(fit(table, "effective-parameters")))
    assert {row for row, reason in flagged if reason in (SIZE_ORDER, K_ORDER)} == {spoiled}


def test_an_exact_law_has_no_outliers_but_leverage() -> None:
    table = rows_of_a_power_law()
    table["loss"] = 9 * table["params"] ** -0.1
    assert set(flag(fit(table, "power"))["reason"]) <= {LEVERAGE}


def test_as_many_parameters_as_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows for 2 parameters leave no residual"):
        flag(fit(rows_of_a_power_law(rows=2), "power"))


def test_opt_66b_is_flagged_in_published_figures() -> None:
    table = given("published_kbit.csv").query("family == 'OPT' and dataset == 'wikitext2'")
    table = table.assign(total_bits=table["params_linear"] * table["bits_eff"], k=table["bits"], model=table["size"])
    table = table.assign(loss=np.log(table["ppl"])).set_index(table["size"] + " at " + table["bits"].astype(str))
    gptq = table[table["method"].isin(["fp16", "GPTQ"])]
    assert {("66B at 3.0", RESIDUAL), ("66B at 3.0", COOK)} == reasons(flag(fit(gptq, "total-bits")))
    factors = reasons(flag(fit(gptq, "effective-parameters")))
    assert {("66B at 3.0", RESIDUAL), ("66B at 3.0", COOK), ("66B at 3.0", SIZE_ORDER)} == factors
    rtn = flag(fit(table[table["method"].isin(["fp16", "RTN"])], "effective-parameters"))
    assert {("66B at 4.0", RESIDUAL), ("66B at 4.0", SIZE_ORDER), ("66B at 4.0", COOK)} <= reasons(rtn)


def test_the_rows_left_out_of_chinchillas_fit_are_those_that_stand_out_most() -> None:
    table = given("chinchilla.csv")
    flagged = flag(fit(table, "chinchilla")).query("reason == @RESIDUAL")
    assert set(flagged["row"][:4]) <= set(table.index[table["in_epoch_fit"] == 0])


def test_formats_by_name_have_no_order_but_sizes_have() -> None:
    table = family_of_bits().assign(format=lambda rows: "int" + rows["k"].astype(str)).replace("int16", "fp16")
    spoiled = table[(table["k"] == 4) & (table["params"] > 2e6)].index[0]
    table.loc[spoiled, "loss"] *= 1.3
    flagged = reasons(flag(fit(table, "effective-parameters", columns={"k": "format"})))
    assert (spoiled, SIZE_ORDER) in flagged
    assert K_ORDER not in {reason for _, reason in flagged}


def test_with_total_bits_the_model_tells_which_rows_differ_in_k_alone() -> None:
    table = family_of_bits().assign(model=lambda rows: rows["params"].astype(str))
    table["total_bits"] = table["params"] * table["k"]
    spoiled = table[(table["k"] == 4) & (table["params"] > 2e6)].index[0]
    table.loc[spoiled, "loss"] *= 2
    assert (spoiled, K_ORDER) in reasons(flag(fit(table, "total-bits")))
    assert K_ORDER not in {reason for _, reason in reasons(flag(fit(table, "total-bits", groups=None)))}

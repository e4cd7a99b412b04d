"""What a bit is worth: exact on curves with a known answer, and with an interval that holds it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws.worth import worth_of_a_bit

Simulate = Callable[..., pd.DataFrame]


def halves() -> pd.DataFrame:
    """The loss falls by 1 for every doubling; k = 3 counts for half of the parameters of k = 4, k = 2 for an eighth."""
    log2_params = np.arange(10.0, 20.0)
    effective = {2: -3.0, 3: -1.0, 4: 0.0}
    rows = [
        {"model": f"m{x:g}", "k": k, "bits_per_weight": k + 0.25, "params_nonemb": 2.0**x, "loss": 30 - (x + shift)}
        for k, shift in effective.items()
        for x in log2_params
    ]
    return pd.DataFrame(rows)


def worth(table: pd.DataFrame, **options: object) -> pd.DataFrame:
    return worth_of_a_bit(table, method=None, element=None, block=None, **options)


def test_it_is_the_ratio_of_effective_parameters() -> None:
    answer = worth(halves())
    assert answer.groupby(["from_k", "to_k"])["times"].unique().map(list).to_dict() == {(2, 3): [4.0], (3, 4): [2.0]}
    assert answer["break_even"].tolist() == pytest.approx([3.25 / 2.25] * 8 + [4.25 / 3.25] * 9)
    assert answer["pays"].all()
    assert answer["low"].isna().all()  # no seeds


def test_a_loss_that_no_model_of_the_lower_k_reaches_is_left_out() -> None:
    answer = worth(halves())
    assert answer[answer["from_k"] == 2]["params"].max() == 2.0**17
    absent = halves().drop(index=2)  # k = 2 at 2^12
    assert worth(absent)["times"].tolist() == pytest.approx(answer["times"].drop(index=2).tolist())


def test_between_models_the_loss_is_linear_in_the_logarithm() -> None:
    table = halves()
    table["loss"] -= np.where(table["k"] == 4, 0.5, 0.0)
    assert worth(table).query("from_k == 3")["times"].tolist() == pytest.approx([2**1.5] * 8)


def test_intervals_come_from_seeds(family: Simulate) -> None:
    truth = worth(family(shift_sd=0.0, delta_sd=0.0)).set_index(["model", "to_k"])["times"]
    held = asked = 0
    for state in range(20):
        answer = worth(family(random_state=state)).set_index(["model", "to_k"])
        pairs = answer.join(truth.rename("truth"), how="inner").query("to_k == 4")
        held += int(((pairs["low"] <= pairs["truth"]) & (pairs["truth"] <= pairs["high"])).sum())
        asked += len(pairs)
    assert asked > 60
    assert held / asked > 0.88


def test_bad_tables_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="column 'bits_per_weight' is missing"):
        worth(halves().drop(columns="bits_per_weight"))
    with pytest.raises(ValueError, match="at least two k are needed"):
        worth(halves().query("k == 3"))

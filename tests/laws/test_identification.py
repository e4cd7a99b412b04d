"""What rows do not determine is refused, and what they do determine is said, law by law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from kbitlib.laws import NotIdentified, fit
from kbitlib.laws.forms import FORMS


def rows(count: int = 60) -> pd.DataFrame:
    """Columns that have nothing to do with each other, and responses that fall with them."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "params": np.exp(random.uniform(17, 22, count)),
            "tokens": np.exp(random.uniform(20, 25, count)),
            "flops": np.exp(random.uniform(40, 48, count)),
            "total_bits": np.exp(random.uniform(15, 23, count)),
            "k": np.tile([2, 4, 8, 16], count)[:count],
            "k_post": np.tile([3, 4, 6], count)[:count],
            "gaussian_mse": np.exp(random.uniform(-6, -1, count)),
            "block": random.choice([32, 64, 128, 256], count),
            "bytes": np.exp(random.uniform(15, 22, count)),
        }
    )
    loss = 1.7 + 400 * table["params"] ** -0.34 + 2000 * table["tokens"] ** -0.37
    return table.assign(loss=loss, delta=loss / 10 * np.exp(-table["k"] / 3), ms=loss)


def refusal(table: pd.DataFrame, law: str, **options: Any) -> NotIdentified:
    with pytest.raises(NotIdentified, match="not identified") as refused:
        fit(table, law, **options)
    return refused.value


WITH_TOKENS = [name for name, form in FORMS.items() if "tokens" in form.columns and "tokens" not in form.optional]


@pytest.mark.parametrize("law", WITH_TOKENS)
def test_one_number_of_tokens_is_refused_for_a_term_of_tokens(law: str) -> None:
    said = refusal(rows().assign(tokens=1e10), law)
    assert "tokens" in str(said)
    assert said.identified


@pytest.mark.parametrize("law", [name for name in WITH_TOKENS if not FORMS[name].linear])
def test_tokens_in_proportion_to_params_are_refused(law: str) -> None:
    table = rows()
    said = refusal(table.assign(tokens=20 * table["params"]), law)
    assert "log params - log tokens + 2.996 = 0 in every row" in str(said)
    assert said.identified == ["the response where params and tokens move together, not the share of each"]


@pytest.mark.parametrize("law", FORMS)
def test_fewer_rows_than_parameters_are_refused(law: str) -> None:
    few = rows()[1:2] if law in ("power", "time", "memory") else rows()[1:4]  # k = 4, 8, 16
    assert "not identified" in str(refusal(few, law))


def test_params_tokens_and_flops_of_one_budget() -> None:
    table = rows()
    table = table.assign(flops=6 * table["params"] * table["tokens"])
    said = refusal(table, "tutorial")
    assert said.identified == ["log alpha + 1.792 delta", "beta + delta", "gamma + delta"]


def test_four_independent_rows_are_solved_exactly_by_the_tutorials_law() -> None:
    truth = {"alpha": 2.5, "beta": -0.06, "gamma": -0.09, "delta": 0.02}
    table = pd.DataFrame({"N": [1e9, 1e10, 1e11, 1e10], "D": [1e9, 1e10, 1e10, 2e11], "C": [6e18, 6e20, 9e21, 2e22]})
    table["loss"] = truth["alpha"] * table["N"] ** -0.06 * table["D"] ** -0.09 * table["C"] ** 0.02
    results = fit(table, "tutorial", columns={"params": "N", "tokens": "D", "flops": "C"})
    assert results.params.to_dict() == pytest.approx(truth, rel=1e-6)
    assert results.objective == pytest.approx(0, abs=1e-20)


def test_kumar_with_one_k() -> None:
    said = refusal(rows()[["params", "tokens", "k", "loss"]].assign(k=4), "kumar")
    assert said.names == ["A", "gamma_w"]
    assert "k is 4 in every row" in str(said)
    assert said.identified[:4] == ["E", "B", "alpha", "beta"]
    assert said.identified[4:] == ["the term A (params (1 - e^(-k/gamma_w)))^-alpha as a whole"]


def test_kumar_with_one_k_after_training() -> None:
    table = rows()[["params", "tokens", "k", "loss"]].assign(k=4)
    said = refusal(table, "kumar", columns={"k_post": "k"})
    assert said.names == ["C_T", "gamma_post"]
    assert "the term C_T tokens^gamma_D params^-gamma_N e^(-k_post/gamma_post) as a whole" in said.identified


def test_kumar_with_weights_and_activations_of_the_same_bits() -> None:
    said = refusal(rows().assign(activation_bits=lambda t: t["k"]), "kumar")
    assert "log k - log activation_bits = 0 in every row" in str(said)
    assert said.identified == ["the response where k and activation_bits move together, not the share of each"]


def test_one_value_of_what_a_law_is_about() -> None:
    assert refusal(rows().assign(gaussian_mse=0.01), "panferov").names == ["A", "F", "C"]
    assert refusal(rows().assign(block=64), "qat").identified[0] == "log C + 1.792 gamma_G"
    assert refusal(rows().assign(k=3), "ouyang").identified[0] == "log C - 1.099 gamma"
    assert refusal(rows().assign(bytes=1e6), "time").identified == ["the sum T + c bytes"]
    assert refusal(rows().assign(k=3), "degradation").names == ["C", "c", "g", "h"]
    assert refusal(rows().assign(params=1e9), "frantar").identified[:2] == ["B", "beta"]


@pytest.mark.parametrize("law", ["effective-parameters", "frantar"])
def test_factors_of_k_need_rows_of_full_precision(law: str) -> None:
    table = rows()
    said = refusal(table[table["k"] < 16], law)
    assert said.names == ["A", "f[2]", "f[4]", "f[8]"]
    assert "no row is of full precision (k of 16 or more, or full, fp32" in str(said)
    assert said.identified[-1] == "the factors up to a common one (f[k] / f[8])"


def test_two_values_are_named() -> None:
    said = refusal(rows().assign(tokens=[1e9, 4e9] * 30), "chinchilla")
    assert "tokens is 1e+09 or 4e+09 in every row" in str(said)
    assert said.identified == ["A", "alpha", "2 combinations of E, B, beta"]


def test_a_response_that_never_changes_tells_no_exponent() -> None:
    said = refusal(rows().assign(loss=3.0), "chinchilla")
    assert said.names == ["A", "B", "alpha", "beta"]
    assert "loss is 3 in every row" in str(said)


def test_long_lists_are_cut_to_what_can_be_read() -> None:
    table = pd.concat([rows().assign(k=float(k)) for k in range(20, 60)]).assign(k=lambda frame: frame["k"] / 4)
    said = str(refusal(table, "effective-parameters"))
    assert "31 more" in said

"""How large a model to train, on how much, and at how many bits: the least loss for a budget, or the least cost.

Training costs about 6 N D FLOPs (Kaplan et al. 2020). For the chinchilla law the best N and D for C FLOPs have a closed
form (Hoffmann et al. 2022, equation 4). Once a model serves, every token costs about 2 N more, and smaller models
trained for longer win (Sardana et al. 2024). Where serving is bound by reading weights, one of b bits costs b/16 of one
in 16 bits, so that N, D and k are to be chosen together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kbitlib.laws.diagnostics import COLLINEAR
from kbitlib.laws.facts import FittedLaw
from kbitlib.laws.results import LawResults
from kbitlib.laws.tables import FULL_PRECISION, FloatArray, numbers

TRAINING, SERVING = 6.0, 2.0  # FLOPs a parameter and token: forward and backward, and forward alone
NAMES = ("E", "A", "B", "alpha", "beta")
PUBLISHED = {
    "Hoffmann et al. 2022, as printed": (1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al. 2024": (1.8169, 482.01, 2085.43, 0.3478, 0.3659),
    "the minimum on the rows of Besiroglu et al.": (1.81722, 477.83, 2143.4, 0.347311, 0.367172),  # by `fit`
}
_SIZES, _LENGTHS = 61, 121  # of the grids on which the best is looked for
_ROUNDS, _HALVINGS = 5, 45  # each round narrows log N thirtyfold


def compute_optimal(results: LawResults, flops: Sequence[float], *, level: float = 0.95) -> pd.DataFrame:
    """The N and D of least loss for each C = 6 N D, by a fitted chinchilla law.

    Columns ``flops, params, params_low, params_high, tokens, tokens_low, tokens_high, tokens_per_param, loss``, and
    ``exponent, exponent_low, exponent_high``, of C in N: beta/(alpha + beta). Ends are those of the draws where the
    fit was resampled, else the Delta method's on logarithms; NaN where no interval can be given, as where N and D move
    together, nearly, or some resamples have an exponent below 0. ValueError for another law, exponents that are not
    positive, or FLOPs that are not.
    """
    if results.law != "chinchilla":
        raise ValueError(f"compute-optimal N and D are of the law chinchilla; this is {results.law}")
    budgets = _positive(flops)
    if not (results.theta[3:] > 0).all():
        raise ValueError("alpha and beta must be positive: with the other sign more parameters or data only cost")
    table = _allocation(results.theta, budgets)
    draws = results.uncertainty.draws
    low, high = (_by_delta if draws is None else _by_draws)(results, budgets, level)
    columns = ["params", "tokens", "exponent"]
    for name, least, most in zip(columns, low, high, strict=True):
        table[f"{name}_low"], table[f"{name}_high"] = least, most
    ordered = [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    return table[["flops", *ordered[:6], "tokens_per_param", "loss", *ordered[6:]]]


def published_optimal(flops: Sequence[float]) -> pd.DataFrame:
    """What published parameters of the chinchilla law give, without intervals: those that were printed are rounded."""
    budgets = _positive(flops)
    tables = [
        _allocation(np.array([E, np.log(A), np.log(B), alpha, beta]), budgets).assign(parameters=name)
        for name, (E, A, B, alpha, beta) in PUBLISHED.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[["parameters", *table.columns.drop("parameters")]]


def with_inference(
    law: FittedLaw,
    formats: pd.DataFrame,
    *,
    served: float,
    loss: float | None = None,
    budget: float | None = None,
    memory: float = np.inf,
) -> pd.DataFrame:
    """N, D and k together, when ``served`` tokens are to be read or written after training (Sardana et al. 2024).

    Either the least cost of a target ``loss``, or the least loss for a ``budget``; the cost is 6 N D + 2 N served b/16
    for b bits a weight, in FLOPs of 16 bits. ``law`` is one of the loss in params, tokens and k (or k_post), as
    ``frantar`` or ``kumar``; ``formats`` has ``format, k, bits_per_weight`` a row; ``memory`` limits N b/8 bytes. N and
    D are looked for from a tenth of the least that was fitted to a thousand times the most.

    One row a format that reaches it, the best first: ``format, k, params, tokens, training, serving, cost, bytes, loss,
    beyond`` (times outside the rows fitted). ValueError if not exactly one of loss and budget is given, for a law
    without tokens or k, or where no format reaches it.
    """
    if (loss is None) == (budget is None):
        raise ValueError("a target loss or a budget is needed, and not both")
    if law.form.response != "loss" or "tokens" not in law.form.columns or not {"k", "k_post"} & set(law.form.columns):
        raise ValueError(f"law {law.form.name} is of {', '.join(law.form.columns)}; params, tokens and k are needed")
    found = [_best_of(law, row, served, loss, budget, memory) for _, row in _checked(formats).iterrows()]
    rows = [row for row in found if row is not None]
    if not rows:
        aim = f"a loss of {loss:g}" if loss is not None else f"a budget of {budget:g} FLOPs"
        raise ValueError(f"no format reaches {aim} with {memory:g} bytes of memory")
    return pd.DataFrame(rows).sort_values("loss" if loss is None else "cost", ignore_index=True)


# --- Hoffmann et al. 2022, equation 4 ---


def _allocation(theta: FloatArray, flops: FloatArray) -> pd.DataFrame:
    log_params, log_tokens, exponent = _log_optimum(theta, flops)
    E, log_A, log_B, alpha, beta = theta
    loss = E + np.exp(log_A - alpha * log_params) + np.exp(log_B - beta * log_tokens)
    columns = {"flops": flops, "params": np.exp(log_params), "tokens": np.exp(log_tokens)}
    ratio = np.exp(log_tokens - log_params)
    return pd.DataFrame(columns | {"tokens_per_param": ratio, "loss": loss, "exponent": exponent[0]})


def _log_optimum(theta: FloatArray, flops: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The logarithms of N and D (..., budgets) and the exponent (..., 1), for parameters (..., 5) as estimated."""
    _, log_A, log_B, alpha, beta = np.moveaxis(theta, -1, 0)[..., None]
    log_budget = np.log(flops / TRAINING)
    log_params = (np.log(alpha / beta) + log_A - log_B + beta * log_budget) / (alpha + beta)
    return log_params, log_budget - log_params, beta / (alpha + beta)


def _answers(theta: FloatArray, flops: FloatArray) -> FloatArray:
    """What intervals are made for, (..., 3, budgets): logarithms of N and of D, and the exponent."""
    return np.stack(np.broadcast_arrays(*_log_optimum(theta, flops)), axis=-2)


def _by_draws(results: LawResults, flops: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    drawn = results.uncertainty.draws
    assert drawn is not None
    if not (drawn[:, 3:] > 0).all():  # some resamples would spend nothing on parameters, or on data
        return _unknown(flops)
    low, high = np.quantile(_answers(drawn, flops), [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return _natural(low), _natural(high)


def _by_delta(results: LawResults, flops: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    if results.estimate.inflation > COLLINEAR:  # the law is flat along the very direction that is asked about
        return _unknown(flops)
    center = _answers(results.theta, flops)
    step = 1e-5
    moved = results.theta + step * np.stack([np.eye(len(NAMES)), -np.eye(len(NAMES))])  # (2, p, p)
    above, below = _answers(moved, flops)  # (p, 3, budgets)
    slopes = (above - below) / (2 * step)
    covariance = results.uncertainty.covariance
    error = np.sqrt(np.einsum("paf,pq,qaf->af", slopes, covariance, slopes))
    width = stats.t.ppf(0.5 + level / 2, results.uncertainty.freedom) * error
    return _natural(center - width), _natural(center + width)


def _unknown(flops: FloatArray) -> tuple[FloatArray, FloatArray]:
    nothing = np.full((3, len(flops)), np.nan)
    return nothing, nothing


def _natural(ends: FloatArray) -> FloatArray:
    return np.concatenate([np.exp(ends[:2]), ends[2:]])


def _positive(flops: Sequence[float]) -> FloatArray:
    return numbers(pd.DataFrame({"flops": np.atleast_1d(flops)}), "flops")


# --- N, D and k together ---


def _best_of(
    law: FittedLaw, offer: pd.Series, served: float, loss: float | None, budget: float | None, memory: float
) -> dict[str, object] | None:
    """The best N and D of one format, on a grid of N that closes in on the best; None where no N reaches the aim."""
    bits = offer["bits_per_weight"]
    ends = np.log(law.range["params"][0] / 10), np.log(min(1e3 * law.range["params"][1], 8 * memory / bits))
    if ends[0] >= ends[1]:
        return None
    for _ in range(_ROUNDS):
        log_params = np.linspace(*ends, _SIZES)
        params = np.exp(log_params)
        if loss is not None:
            tokens = _tokens_needed(law, offer, params, loss)
            worth = TRAINING * params * tokens + _serving(params, bits, served)
        else:
            tokens = np.maximum((float(budget or 0) - _serving(params, bits, served)) / (TRAINING * params), 0.0)
            worth = np.where(tokens > 0, _losses(law, offer, params, np.maximum(tokens, 1.0)), np.inf)
        best = int(np.argmin(worth))
        if not np.isfinite(worth[best]):
            return None
        ends = log_params[max(best - 1, 0)], log_params[min(best + 1, _SIZES - 1)]
    return _described(law, offer, float(params[best]), float(tokens[best]), served)


def _tokens_needed(law: FittedLaw, offer: pd.Series, params: FloatArray, loss: float) -> FloatArray:
    """The least D (n,) that brings the loss to a target; infinite where none does: long runs may lose more to rounding.

    Found on a grid, then by bisection.
    """
    low, high = law.range["tokens"]
    grid = np.geomspace(low / 10, 1e3 * high, _LENGTHS)
    losses = _losses(law, offer, np.repeat(params, _LENGTHS), np.tile(grid, len(params)))
    reached = losses.reshape(len(params), _LENGTHS) <= loss
    first = reached.argmax(axis=1)
    above, below = np.log(grid[np.maximum(first - 1, 0)]), np.log(grid[first])
    for _ in range(_HALVINGS):
        middle = (above + below) / 2
        done = _losses(law, offer, params, np.exp(middle)) <= loss
        above, below = np.where(done, above, middle), np.where(done, middle, below)
    return np.where(reached.any(axis=1), np.exp(below), np.inf)


def _losses(law: FittedLaw, offer: pd.Series, params: FloatArray, tokens: FloatArray) -> FloatArray:
    level = offer["format"] if law.by_name else offer["k"]
    bits = {"k": np.full(len(params), level), "k_post": np.full(len(params), offer["k"])}
    return law.mean({"params": params, "tokens": tokens, **bits})


def _serving(params: Any, bits: float, served: float) -> Any:
    return SERVING * params * served * bits / FULL_PRECISION


def _described(law: FittedLaw, offer: pd.Series, params: float, tokens: float, served: float) -> dict[str, object]:
    training, serving = TRAINING * params * tokens, _serving(params, offer["bits_per_weight"], served)
    beyond = max(law.beyond(np.array([params]), "params")[0], law.beyond(np.array([tokens]), "tokens")[0])
    return {
        "format": offer["format"],
        "k": offer["k"],
        "params": params,
        "tokens": tokens,
        "training": training,
        "serving": serving,
        "cost": training + serving,
        "bytes": params * offer["bits_per_weight"] / 8,
        "loss": float(_losses(law, offer, np.array([params]), np.array([tokens]))[0]),
        "beyond": float(beyond),
    }


def _checked(formats: pd.DataFrame) -> pd.DataFrame:
    return formats.assign(**{name: numbers(formats, name) for name in ("k", "bits_per_weight")})

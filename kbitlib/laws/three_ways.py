"""The tutorials' three ways to fit a law, on the same data: least squares, gradient descent, Bayesian optimisation.

All three minimise one function, the sum of squared differences between observed and predicted losses; they differ in
how far they get, and at what cost. To give each a fair chance, what is counted (params, tokens, ...) is divided by its
geometric mean, so that every parameter is of a size near 1: factors such as A are then the term's value at the middle
of the data; exponents and E are what they are without.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import ExpectedImprovement
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import gmean

from kbitlib.laws.fit import fit
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray, numbers

_COUNTS = ("params", "tokens", "flops", "total_bits", "bytes")


class _Squares:
    """The sum of squared differences as a function of theta (p,), which counts how often it was asked."""

    def __init__(self, surface: Surface, observed: FloatArray) -> None:
        self.surface, self.observed, self.evaluations = surface, observed, 0

    def predict(self, theta: FloatArray) -> FloatArray:
        self.evaluations += 1
        with np.errstate(over="ignore", invalid="ignore"):
            return np.exp(self.surface.log_mean(theta))

    def value(self, theta: FloatArray) -> float:
        return float(((self.predict(theta) - self.observed) ** 2).sum())

    def value_and_gradient(self, theta: FloatArray) -> tuple[float, FloatArray]:
        self.evaluations += 1
        with np.errstate(over="ignore", invalid="ignore"):
            log_mean, jacobian = self.surface.log_mean_and_jacobian(theta[None])
            predicted = np.exp(log_mean[0])
            residual = predicted - self.observed
            return float((residual**2).sum()), 2 * jacobian[0] @ (predicted * residual)


def three_ways(
    table: pd.DataFrame,
    law: str = "chinchilla",
    *,
    steps: int = 2_000,
    trials: int = 50,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Fit a law in the tutorials' three ways and in this library's, one row each.

    scipy's ``curve_fit`` and gradient descent start where every parameter is 1, which is what ``curve_fit`` does unless
    told otherwise; gradient descent takes ``steps`` of one rate, which is halved whenever a step would go up. Bayesian
    optimisation (a Gaussian process and its expected improvement, Jones et al. 1998) has ``trials``, the first 20 at
    random, with positive parameters between .1 and 10, others between -1 and 1, and E up to the lowest loss.

    Columns: ``objective``; its ``excess`` over the lowest, relative; ``evaluations`` of the law at one set of
    parameters (NaN for this library, which takes many at once); ``seconds``; and the parameters in the units above,
    NaN where ``curve_fit`` gives up.
    ``options`` go to ``fit``; ValueError as there.
    """
    if steps < 1 or trials < 1:
        raise ValueError(f"steps is {steps} and trials is {trials}; 1 or more are allowed")
    table = _in_middle_units(table, fit(table, law, loss="squared", **options).surface, options)
    begin = time.perf_counter()
    ours = fit(table, law, loss="squared", **options)
    seconds = time.perf_counter() - begin
    observed = (ours.fittedvalues + ours.resid - ours.irreducible).to_numpy()
    start = np.where(ours.surface.positive, 0.0, 1.0)
    ways: dict[str, Callable[[_Squares], FloatArray]] = {
        "least squares (curve_fit)": lambda squares: _least_squares(squares, start),
        "gradient descent": lambda squares: _gradient_descent(squares, start, steps),
        "Bayesian optimisation": lambda squares: _bayesian_optimisation(squares, trials, seed),
    }
    lines = {name: _line(way, _Squares(ours.surface, observed)) for name, way in ways.items()}
    lines["kbitlib"] = {"objective": ours.objective, "evaluations": np.nan, "seconds": seconds, **ours.params}
    found = pd.DataFrame.from_dict(lines, orient="index").rename_axis("way")
    found.insert(1, "excess", found["objective"] / found["objective"].min() - 1)
    return found


def _in_middle_units(table: pd.DataFrame, surface: Surface, options: dict[str, Any]) -> pd.DataFrame:
    named = dict(options.get("columns") or {})
    own = [named.get(name, name) for name in surface.form.columns if name in _COUNTS]
    return table.assign(**{name: numbers(table, name) / gmean(numbers(table, name)) for name in own})


def _line(way: Callable[[_Squares], FloatArray], squares: _Squares) -> dict[str, float]:
    begin = time.perf_counter()
    theta = way(squares)
    seconds, evaluations = time.perf_counter() - begin, squares.evaluations
    natural = dict(zip(squares.surface.names, squares.surface.natural(theta).tolist(), strict=True))
    return {"objective": squares.value(theta), "evaluations": evaluations, "seconds": seconds, **natural}


def _least_squares(squares: _Squares, start: FloatArray) -> FloatArray:
    rows: NDArray[Any] = np.arange(len(squares.observed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # no covariance where it ends on a ridge
        try:
            return np.asarray(
                curve_fit(lambda _, *theta: squares.predict(np.array(theta)), rows, squares.observed, start)[0]
            )
        except RuntimeError:  # scipy's word for too many evaluations
            return np.full(len(start), np.nan)


def _gradient_descent(squares: _Squares, start: FloatArray, steps: int) -> FloatArray:
    theta, rate = start, 1.0 / len(squares.observed)
    value, gradient = squares.value_and_gradient(theta)
    for _ in range(steps):
        trial = theta - rate * gradient
        trial = np.where(squares.surface.offset, np.maximum(trial, 0.0), trial)
        lower, slope = squares.value_and_gradient(trial)
        if lower <= value:
            theta, value, gradient = trial, lower, slope
        else:
            rate /= 2
    return theta


class _Improvement(ExpectedImprovement):
    """Expected improvement whose maximum is sought from two starts, not ten: a fifth of the time."""

    def suggest(self, *args: Any, **options: Any) -> NDArray[Any]:
        return super().suggest(*args, **(options | {"n_smart": 2}))


def _bayesian_optimisation(squares: _Squares, trials: int, seed: int) -> FloatArray:
    surface = squares.surface
    low = np.select([surface.positive, surface.offset], [np.log(0.1), 0.0], -1.0).tolist()
    high = np.select([surface.positive, surface.offset], [np.log(10.0), squares.observed.min()], 1.0).tolist()

    def goodness(**theta: float) -> float:
        return -float(np.log(np.clip(squares.value(np.array([theta[name] for name in surface.names])), 1e-300, 1e300)))

    search = BayesianOptimization(
        goodness,
        dict(zip(surface.names, zip(low, high, strict=True), strict=True)),
        acquisition_function=_Improvement(xi=0.0),
        random_state=seed,
        verbose=0,
    )
    at_random = min(20, trials)
    search.maximize(init_points=at_random, n_iter=trials - at_random)
    return search.space.params[search.space.target.argmax()]

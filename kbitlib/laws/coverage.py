"""How often each kind of interval holds the truth: on surfaces with a known law and noise, refused kinds included.

A kind is offered where a binomial test does not tell its rate from the nominal one; what it is refused for is measured
here too. Noise is normal on logarithms; models share a shift, as training them again from another seed would make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kbitlib.laws.estimate import Loss, minimise
from kbitlib.laws.forms import FORMS
from kbitlib.laws.intervals import FEWEST_CLUSTERS, KINDS, why_not
from kbitlib.laws.profile import least_squares, profile
from kbitlib.laws.surface import Surface
from kbitlib.laws.tables import FloatArray
from kbitlib.laws.uncertainty import Estimate

NOMINAL = 0.95
_NOISE = 0.01  # of a row; of models, a shift common to a run, and noise of its own
_SHIFT, _OWN = 0.005, 0.002
_RESAMPLED = ("percentile", "bca", "cluster-bootstrap")
_LESS = 10  # bootstraps that are refused are tried on one surface in so many: they cost most
_PROFILED = 5  # surfaces whose profile is walked to its ends for a width; the F test at the truth decides all


@dataclass(frozen=True)
class Case:
    """A surface with its true ``theta``; rows of one run share a shift, runs of one model differ by their seeds."""

    surface: Surface
    theta: FloatArray
    groups: pd.Series | None = None
    seeds: pd.Series | None = None

    def responses(self, count: int, random: np.random.Generator) -> FloatArray:
        """``count`` tables of responses (count, n) that the law and its noise might have shown."""
        log_mean = self.surface.log_mean(self.theta)
        noise = random.standard_normal((count, self.surface.rows))
        if self.groups is None:
            return np.exp(log_mean + _NOISE * noise)
        run = pd.factorize(self.groups if self.seeds is None else self.groups + "/" + self.seeds)[0]
        shift = _SHIFT * random.standard_normal((count, run.max() + 1))[:, run]
        return np.exp(log_mean + shift + _OWN * noise)


def _rows(count: int, spread: float | None = None) -> Case:
    """The chinchilla law on ``count`` rows; with a ``spread``, 20 tokens a parameter but for noise of that size."""
    random = np.random.default_rng(1)
    params, tokens = np.exp(random.uniform(17, 23, count)), np.exp(random.uniform(20, 26, count))
    if spread is not None:
        tokens = 20 * params * np.exp(spread * random.standard_normal(count))
    truth = np.array([1.8, np.log(480), np.log(2100), 0.35, 0.37])
    return Case(Surface(FORMS["chinchilla"], {"params": params, "tokens": tokens}), truth)


def _models(law: str, models: int = 6, seeds: int = 1) -> Case:
    """Models by seven k, each model trained from so many seeds."""
    sizes, seed, k = map(np.ravel, np.meshgrid(np.geomspace(1e4, 1e7, models), np.arange(seeds), np.arange(2.0, 9.0)))
    if law == "total-bits":
        surface = Surface(FORMS[law], {"total_bits": sizes * (k + 0.25), "k": k})
        truth = np.concatenate([np.log(np.linspace(20, 8, 7)), np.linspace(0.16, 0.12, 7)])
    else:
        surface = Surface(FORMS[law], {"params": sizes, "k": np.where(k == 8, 16.0, k)})
        truth = np.array([0.6, np.log(30), 0.3, *np.log([0.02, 0.3, 0.6, 0.8, 0.9, 0.97])])
    groups = pd.Series(sizes.astype(str), name="model")
    return Case(surface, truth, groups, pd.Series(seed.astype(str)) if seeds > 1 else None)


CASES: dict[str, Callable[[], Case]] = {
    "240 rows": lambda: _rows(240),
    "30 rows": lambda: _rows(30),
    "nearly collinear": lambda: _rows(120, spread=0.1),
    "six models by seven k": lambda: _models("total-bits"),
    "six models, three seeds": lambda: _models("total-bits", seeds=3),
    "six models, one curve": lambda: _models("effective-parameters"),
    "twelve models by seven k": lambda: _models("total-bits", models=12),
}


def coverage(case: str, surfaces: int = 500, resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """How often intervals of nominal 95 % hold the truth, one row a (loss, kind, parameter) of a case.

    Columns ``case, loss, kind, offered, refusal, parameter, nominal, covered, surfaces, rate, p_value, width``: p_value
    of a binomial test of the rate against the nominal one, width the median one, of positive parameters by logarithm.
    ValueError for an unknown case.
    """
    if case not in CASES:
        raise ValueError(f"case {case!r} is unknown; {', '.join(CASES)} are allowed")
    made = CASES[case]()
    responses = made.responses(surfaces, np.random.default_rng(seed))
    lines = []
    for loss in (Loss.named("log-squared", 1e-3), Loss.named("huber", 1e-3)):
        estimates = _estimates(made, responses, loss, resamples)
        for kind, (ends, held) in _measure(made, estimates).items():
            refusal = why_not(estimates[0], kind)
            for j, name in enumerate(made.surface.names):
                covered, tried = int(held[:, j].sum()), len(held)
                lines.append(
                    {
                        "case": case,
                        "loss": loss.name,
                        "kind": kind,
                        "offered": not refusal,
                        "refusal": refusal,
                        "parameter": name,
                        "nominal": NOMINAL,
                        "covered": covered,
                        "surfaces": tried,
                        "width": float(np.median(ends[:, j, 1] - ends[:, j, 0])),
                    }
                )
    return pooled(pd.DataFrame(lines))


def pooled(parts: pd.DataFrame) -> pd.DataFrame:
    """The table of ``coverage`` from those of its parts, which had other seeds; widths are means of their medians."""
    keys = ["case", "loss", "kind", "offered", "refusal", "parameter", "nominal"]
    counts = {"covered": ("covered", "sum"), "surfaces": ("surfaces", "sum"), "width": ("width", "mean")}
    table = parts.groupby(keys, sort=False).agg(**counts).reset_index()
    tests = [stats.binomtest(row.covered, row.surfaces, row.nominal).pvalue for row in table.itertuples()]
    return table.assign(rate=table["covered"] / table["surfaces"], p_value=tests)


Measured = dict[str, tuple[FloatArray, NDArray[np.bool_]]]  # kind -> ends (surfaces, p, 2), held (surfaces, p)


def _measure(case: Case, estimates: list[Estimate]) -> Measured:
    found: Measured = {}
    for kind in _tried(case, estimates[0].least_squares):
        if kind == "profile-f":
            found[kind] = _profiled(case, estimates)
        else:
            dear = kind in _RESAMPLED and why_not(estimates[0], kind)
            fewer = estimates[: -(-len(estimates) // _LESS)] if dear else estimates
            ends = np.array([KINDS[kind](estimate).ends(NOMINAL) for estimate in fewer])
            found[kind] = ends, (ends[..., 0] <= case.theta) & (case.theta <= ends[..., 1])
    return found


def _tried(case: Case, least_squares: bool) -> list[str]:
    """The kinds that have a value here, whether or not they hold."""
    if case.groups is None:
        return ["delta", "sandwich", "percentile", "bca", *(["profile-f"] if least_squares else [])]
    if not least_squares:
        return ["delta", "cr3"]
    kinds = ["delta", "cr3", "random-effects", *(["seed-variance"] if case.seeds is not None else [])]
    if not case.surface.form.linear:
        kinds.append("percentile")  # rows drawn from a line a k may leave it a single one
    if not case.surface.form.linear or case.groups.nunique() >= FEWEST_CLUSTERS:
        kinds.append("cluster-bootstrap")  # so may few models
    return kinds


def _estimates(case: Case, responses: FloatArray, loss: Loss, resamples: int) -> list[Estimate]:
    """The minimum of each table, found from the truth."""
    free = np.zeros((len(responses), len(case.theta)), dtype=bool)
    theta, _ = least_squares(case.surface, responses, True, np.repeat(case.theta[None], len(responses), axis=0), free)
    if np.isfinite(loss.threshold):
        pairs = zip(responses, theta, strict=True)
        theta = np.array([minimise(case.surface, y, loss, t[None]).theta[0] for y, t in pairs])
    return [
        Estimate(case.surface, y, loss, t, case.groups, case.seeds, resamples)
        for y, t in zip(responses, theta, strict=True)
    ]


def _profiled(case: Case, estimates: list[Estimate]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Ends of the first profiles, and whether each truth lies within its own: the F test, without the walk."""
    ends = [profile(case.surface, e.response, e.loss.on_logs, e.theta, NOMINAL).ends for e in estimates[:_PROFILED]]
    parameters = len(case.theta)
    freedom = case.surface.rows - parameters
    limit = 1 + stats.f.ppf(NOMINAL, 1, freedom) / freedom
    held = []
    for e in estimates:
        start = np.tile(case.theta, (parameters, 1))
        _, value = least_squares(case.surface, e.response, e.loss.on_logs, start, np.eye(parameters, dtype=bool))
        held.append(value <= limit * (e.linearised[1] @ e.linearised[1]))
    return np.array(ends), np.array(held)

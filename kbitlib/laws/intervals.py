"""How sure an estimate is: each kind of interval is offered only where it keeps its level, as ``coverage`` measures.

Rows are independent: the Delta method, HC3, percentile and BCa bootstrap of rows, and the profile-F interval, which
alone holds where columns are nearly collinear. By Huber's loss only bootstraps of enough rows hold: its other intervals
are too narrow where the threshold is far below the noise. Rows of one model are not independent: the cluster jackknife
CR3 with t(G - 1), random effects, or the variance between seeds; a bootstrap of clusters from ten of them on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kbitlib.laws.clusters import components, intercept_covariance
from kbitlib.laws.diagnostics import COLLINEAR
from kbitlib.laws.group_intervals import cluster_bootstrap, cr3, random_effects, seed_variance
from kbitlib.laws.predictions import Scatter
from kbitlib.laws.row_intervals import bca, delta, percentile, profile_f, sandwich
from kbitlib.laws.uncertainty import Estimate, Uncertainty

FEWEST_CLUSTERS = 10  # from which a bootstrap of clusters is offered
FEWEST_ROWS, BCA_ROWS = 10, 2  # and rows a parameter: from which BCa is offered; 7 rows for 2 miss by .05
MOST_MISSED = 0.05  # of the resamples: those that reach no minimum are not like the others
ROWS_A_PARAMETER = 20  # from which percentiles are offered: of 30 rows for 5 they miss by .02, to either side

KINDS: dict[str, Callable[[Estimate], Uncertainty]] = {
    "delta": delta,
    "sandwich": sandwich,
    "percentile": percentile,
    "bca": bca,
    "profile-f": profile_f,
    "cr3": cr3,
    "random-effects": random_effects,
    "seed-variance": seed_variance,
    "cluster-bootstrap": cluster_bootstrap,
}
_OF_ROWS = ("delta", "sandwich", "percentile", "bca", "profile-f")
_OF_GROUPS = ("cr3", "random-effects", "seed-variance", "cluster-bootstrap")
_OF_SQUARES = ("delta", "sandwich", "profile-f", "random-effects", "seed-variance")
_RESAMPLED = ("percentile", "bca", "cluster-bootstrap")
_MAY_FAIL = ("sandwich", "bca", "cr3", "random-effects", "seed-variance")


def uncertainty(estimate: Estimate, kind: str | None = None) -> Uncertainty:
    """The uncertainty of an estimate by the ``kind`` asked for, or by the first of its preference that holds.

    Raises ValueError for an unknown kind, and for one that does not hold for this loss and design.
    """
    if kind is None:
        return _preferred(estimate)
    if kind not in KINDS:
        raise ValueError(f"interval {kind!r} is unknown; {', '.join(KINDS)} are allowed")
    try:
        return replace(_made(estimate, kind), reason="asked for")
    except ValueError as refusal:
        raise ValueError(f"interval {kind!r} does not hold here: {refusal}") from None


def _preferred(estimate: Estimate) -> Uncertainty:
    refusals = []
    for kind in _preference(estimate):
        try:
            return replace(_made(estimate, kind), reason=_reason(estimate, kind))
        except ValueError as refusal:
            refusals.append(str(refusal))
    parameters = len(estimate.theta)
    covariance = np.full((parameters, parameters), np.nan)
    return Uncertainty("none", covariance, np.nan, lambda level: np.full((parameters, 2), np.nan), refusal=refusals[0])


def _made(estimate: Estimate, kind: str) -> Uncertainty:
    if refusal := _ruled_out(estimate, kind):
        raise ValueError(refusal)
    return KINDS[kind](estimate)


def why_not(estimate: Estimate, kind: str) -> str:
    """Why a kind of interval does not hold for this estimate, in words; empty where it does."""
    refusal = _ruled_out(estimate, kind)
    if refusal or kind not in _MAY_FAIL:
        return refusal
    try:
        KINDS[kind](estimate)
    except ValueError as failure:
        return str(failure)
    return ""


def _preference(estimate: Estimate) -> list[str]:
    if estimate.groups is not None:
        return ["cr3"]
    if not estimate.least_squares:
        return ["bca"]
    if estimate.surface.form.linear and estimate.loss.on_logs:
        return ["sandwich", "delta", "profile-f"]
    return ["delta", "profile-f"]  # where Delta is ruled out


def _reason(estimate: Estimate, kind: str) -> str:
    """Why this kind is the default: loss, design and number of models."""
    if estimate.groups is not None:
        count = estimate.groups.nunique()
        return f"the rows of one {estimate.groups.name} are not independent, and there are {count}"
    loss = "least squares" if estimate.least_squares else "Huber's loss"
    law = "a linear law" if estimate.surface.form.linear else "a law that is not linear"
    inflated = f"columns nearly move together (variance inflation {estimate.inflation:.3g})"
    why = {
        "profile-f": inflated if estimate.inflation > COLLINEAR else "a parameter lies on its boundary",
        "sandwich": "it holds whether or not rows are equally noisy",
        "delta": f"{estimate.surface.rows} independent rows for {len(estimate.theta)} parameters",
        "bca": "the sandwich is too narrow where the threshold is below the noise",
    }
    return f"{loss}, {law}; {why[kind]}"


def _ruled_out(estimate: Estimate, kind: str) -> str:
    """What loss, design and number of models say against a kind, before it is made."""
    surface, groups, parameters = estimate.surface, estimate.groups, len(estimate.theta)
    if not estimate.converged:
        return "no minimum was reached"
    if surface.rows <= parameters:
        return "as many parameters as rows"
    if not estimate.bounded:
        return "derivatives at the minimum are beyond what a float holds"
    if kind in _OF_ROWS and groups is not None:
        return f"rows of one {groups.name} are not independent"
    if kind in _OF_GROUPS and groups is None:
        return "no groups of rows are given"
    if estimate.inflation > COLLINEAR and kind != "profile-f":
        moving = " and ".join(map(str, surface.log_columns()))
        return f"{moving} nearly move together (variance inflation {estimate.inflation:.3g})"
    if kind in ("delta", "sandwich") and (surface.offset & (estimate.theta == 0)).any():
        return "a parameter lies on its boundary, where estimates are not normal"
    if kind in _OF_SQUARES and not estimate.least_squares:
        return "Huber's loss is no sum of squares: where its threshold is below the noise the interval is too narrow"
    of_huber = np.isfinite(estimate.loss.threshold) and groups is None
    fewest = max(FEWEST_ROWS, BCA_ROWS * parameters)
    if (kind == "bca" or of_huber) and surface.rows < fewest:
        needs = "by Huber's loss an interval" if of_huber else "BCa"
        return f"{needs} needs {fewest} rows for {parameters} parameters; {surface.rows} rows are there"
    of_line = kind == "bca" and surface.form.linear and estimate.least_squares  # of 30 rows for 2 it misses by .03
    if (kind == "percentile" or of_line) and surface.rows < ROWS_A_PARAMETER * parameters:
        return f"percentiles need {ROWS_A_PARAMETER} rows a parameter; {surface.rows} rows are there"
    if kind == "cr3" and surface.form.linear and not estimate.least_squares:
        return "by Huber's loss a line through few rows jumps from row to row where one group is left out"
    if kind == "random-effects" and estimate.seeds is not None:
        return "runs of one size differ by their seeds, which seed-variance counts"
    if kind == "cluster-bootstrap" and groups is not None and groups.nunique() < FEWEST_CLUSTERS:
        return f"{groups.nunique()} groups; a bootstrap of clusters needs at least {FEWEST_CLUSTERS}"
    if kind == "seed-variance" and estimate.seeds is None:
        return "no column seed tells several runs of one size apart"
    if kind in _RESAMPLED:
        missed = estimate.resamples - len(estimate.group_draws if kind == "cluster-bootstrap" else estimate.draws)
        if missed > MOST_MISSED * estimate.resamples:
            return f"{missed} of {estimate.resamples} resamples reached no minimum"
    return ""


def scatter(estimate: Estimate) -> Scatter:
    """How rows lie about the law; by variance components where rows are grouped, and a new row is of a new model.

    By least squares the covariance is the model-based one: HC3's is too wide where a size beyond the rows is predicted.
    """
    freedom = estimate.surface.rows - len(estimate.theta)
    if not estimate.converged:
        return Scatter(np.nan, freedom)
    design, residual = estimate.linearised
    if estimate.groups is None:
        if not freedom:
            return Scatter(np.nan, freedom)
        model_based = None if _ruled_out(estimate, "delta") else delta(estimate).covariance
        return Scatter(float(residual @ residual) / freedom, freedom, model_based)
    found = components(design, residual, estimate.groups)
    covariance = intercept_covariance(design, found, estimate.groups)
    return Scatter(found.between + found.within, found.freedom, covariance)

"""Intervals where rows come in groups, as those of one model: CR3, random effects, variance between seeds, clusters."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kbitlib.laws.clusters import components, cr3_covariance, intercept_covariance, intercept_freedom
from kbitlib.laws.diagnostics import determined
from kbitlib.laws.estimate import CONVERGED, minimise
from kbitlib.laws.tables import FloatArray
from kbitlib.laws.uncertainty import Estimate, Uncertainty, by_t, covariance_of

_MANY = 50  # groups from which leaving one out moves so little that a law is as good as linear


def cr3(estimate: Estimate) -> Uncertainty:
    """The cluster jackknife: in closed form for least squares on a linear law or of many groups, else by refits."""
    groups = estimate.groups
    assert groups is not None
    plane = (estimate.surface.form.linear and estimate.loss.on_logs) or groups.nunique() > _MANY
    if plane and estimate.least_squares:
        covariance = cr3_covariance(*estimate.linearised, groups)
    else:
        shifts = _without_each(estimate, groups) - estimate.theta
        covariance = (len(shifts) - 1) / len(shifts) * shifts.T @ shifts
    count = groups.nunique()
    return by_t(f"CR3 by {groups.name} ({count} groups), t", estimate, covariance, count - 1)


def _without_each(estimate: Estimate, groups: pd.Series) -> FloatArray:
    """The estimates (G, p) without each group: the definition of CR3, which holds for any law and loss."""
    codes, names = pd.factorize(groups)
    if len(names) < 2:
        raise ValueError("one group alone")
    weights = (codes[None, :] != np.arange(len(names))[:, None]).astype(np.float64)
    design = estimate.linearised[0]
    for name, kept in zip(names, weights > 0, strict=True):
        if not all(determined(design[kept])):
            raise ValueError(f"without {name} the parameters are not identified")
    starts = np.repeat(estimate.theta[None], len(names), axis=0)
    refits = minimise(estimate.surface, estimate.response, estimate.loss, starts, weights)
    if (refits.gradient > CONVERGED).any():
        raise ValueError(f"without {names[int(refits.gradient.argmax())]} no minimum was reached")
    return refits.theta


def random_effects(estimate: Estimate) -> Uncertainty:
    """A random intercept by group; in a balanced design what restricted maximum likelihood gives."""
    assert estimate.groups is not None
    return _by_intercept("random intercept by {}", estimate, estimate.linearised[0], estimate.groups)


def seed_variance(estimate: Estimate) -> Uncertainty:
    """A random intercept by run, its variance taken between the seeds of one group alone: misfit is left out."""
    assert estimate.groups is not None
    assert estimate.seeds is not None
    sizes = pd.get_dummies(estimate.groups.astype(str)).to_numpy(dtype=np.float64)
    runs = pd.Series(estimate.groups.astype(str) + "/" + estimate.seeds.astype(str), name=estimate.groups.name)
    design = np.column_stack([estimate.linearised[0], sizes])
    return _by_intercept("variance between seeds of one {}", estimate, design, runs)


def _by_intercept(kind: str, estimate: Estimate, removed: FloatArray, groups: pd.Series) -> Uncertainty:
    design, residual = estimate.linearised
    found = components(removed, residual, groups)
    if found.freedom == 0:
        raise ValueError(f"the law leaves no freedom between groups ({groups.nunique()} of {groups.name})")
    covariance = intercept_covariance(design, found, groups)
    each = intercept_freedom(design, found, groups)
    return by_t(f"{kind.format(groups.name)}, t", estimate, covariance, found.freedom, each)


def cluster_bootstrap(estimate: Estimate) -> Uncertainty:
    """Standard errors over refits to groups drawn with replacement, and t(G - 1): percentiles are too narrow.

    The factor G/(G - 1) undoes that draws vary about the sample's mean (Davison & Hinkley 1997, section 2.3).
    """
    assert estimate.groups is not None
    count = estimate.groups.nunique()
    covariance = covariance_of(estimate.group_draws) * count / (count - 1)
    kind = f"bootstrap of {estimate.groups.name} ({count} groups, {estimate.resamples} resamples), t"
    return by_t(kind, estimate, covariance, count - 1)

"""Which k are as good as the best where no model has two seeds: the jackknife over models.

Without seeds nothing tells how much of a model's loss is chance, but leaving one model out at a time shows how far the
answer hangs on single ones. The statistic is the share of the budgets at which the best k is below another. Where its
jackknife interval (Efron & Stein 1981), by t(G - 1) for G models left out, reaches down to one half, the two k are a
tie. Of pairs of k that differ by noise alone it calls 94 to 97 % a tie with eight models and more, 81 to 88 % with four
to six (simulated): so few models agree by chance more often. The mean gap would be a poor statistic: it changes with
the budget, and a trend is no noise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from kbitlib.laws.curves import Family, covered, interpolation
from kbitlib.laws.tables import FloatArray


def ties_without_seeds(family: Family, best: int, level: float) -> tuple[list[float], str]:
    """The k that tie with the one at position ``best``, itself among them, and a sentence on what that rests on."""
    shares = _without_each_model(family, best)
    left_out = len(shares)
    if left_out < 2:
        return [float(family.levels[best])], "without seeds and with so few models nothing tells which k are a tie"
    error = np.sqrt((left_out - 1) * shares.var(axis=0))
    tied = _share_ahead(family, best) - stats.t.ppf(0.5 + level / 2, left_out - 1) * error <= 0.5
    tied[best] = True
    said = f"without seeds, ties are told by leaving out each of {left_out} models"
    if left_out < len(family.models):
        said += f"; without any other of the {len(family.models)} no budget is covered by every k"
    return [float(k) for k in family.levels[tied]], said


def _share_ahead(family: Family, best: int) -> FloatArray:
    """The share of the budgets, (K,), at which the best k is below each; where they are equal a budget counts half."""
    curves = interpolation(family).curves(family.loss)
    return np.asarray((0.5 + 0.5 * np.sign(curves - curves[:, [best]])).mean(axis=0))


def _without_each_model(family: Family, best: int) -> FloatArray:
    """``_share_ahead`` without each model in turn, (G, K), but those without which no budget is covered by every k."""
    shares = []
    for model in range(len(family.models)):
        rest = replace(
            family,
            models=np.delete(family.models, model).tolist(),
            log2_bits=np.delete(family.log2_bits, model, axis=0),
            loss=np.delete(family.loss, model, axis=0),
            seeds=np.delete(family.seeds, model, axis=0),
        )
        low, high = covered(rest)
        if low < high:
            shares.append(_share_ahead(rest, best))
    return np.array(shares)

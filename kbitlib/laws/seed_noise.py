"""How much of a loss is chance: what training again from another seed would change.

The loss of a quantized model is that of the model in full precision plus a paired difference, delta. Between seeds, the
first moves all k of a model together (a shift); the second moves each k by itself, about in proportion to delta.
Residuals from the mean over seeds are taken of the shift, in nats, and of each delta, relative to its size, and pooled
over the models that have several seeds. Simulated noise is made of the pooled residuals with normal weights, which
keeps their covariance across k, and divided by a chi, which makes it t-distributed with the pooled degrees of freedom.

Assumptions: the shift in nats and the relative spread of delta are the same at every size, also at those with one seed;
models of different size are independent (if seeds share the order of the data, sizes move together, differences across
sizes vary less, and intervals are too wide rather than too narrow); the held-out text is fixed, the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kbitlib.laws.curves import Family
from kbitlib.laws.tables import FloatArray, numbers


@dataclass(frozen=True)
class SeedNoise:
    """Pooled noise between seeds.

    ``residuals`` (R, 1 + K): shift in nats, then relative delta of each k; ``freedom``: degrees of freedom;
    ``delta_size`` (M, K): what relative noise is multiplied by; ``models``: those with several seeds.
    """

    residuals: FloatArray
    freedom: int
    delta_size: FloatArray
    models: list[str]

    @property
    def shift_sd(self) -> float:
        """Standard deviation of a full-precision loss between seeds, nats a token."""
        return float(np.sqrt((self.residuals[:, 0] ** 2).sum() / self.freedom))

    @property
    def relative_delta_sd(self) -> FloatArray:
        """Standard deviation of delta between seeds as a part of its size, (K,)."""
        return np.asarray(np.sqrt((self.residuals[:, 1:] ** 2).sum(axis=0) / self.freedom))


def seed_noise(rows: pd.DataFrame, family: Family) -> tuple[SeedNoise | None, list[str]]:
    """The pooled noise, and sentences on what it rests on; None where the rows cannot tell noise between seeds."""
    if not {"seed", "delta"} <= set(rows.columns):
        missing = "seed" if "seed" not in rows else "delta"
        return None, [f"the interval cannot include seed noise: column {missing!r} is missing"]
    loss, delta = _by_run(rows, "loss", family), _by_run(rows, "delta", family)
    size = (delta**2).groupby(level="model").mean() ** 0.5  # root mean square: never near 0 by cancellation
    complete = delta.notna().all(axis=1)
    runs = complete[complete].groupby(level="model").transform("size")
    repeated = runs[runs > 1].index
    if repeated.empty:
        return None, ["the interval cannot include seed noise: no model has two seeds"]
    shift = (loss - delta).mean(axis=1)[repeated]
    sizes = size.loc[repeated.get_level_values("model")].to_numpy()
    relative = pd.DataFrame(delta.loc[repeated] / sizes)
    relative = relative.fillna(0.0)  # 0/0: a delta that is 0 for every seed has no noise
    values = relative.assign(shift=shift)[["shift", *relative.columns]]
    residuals = values - values.groupby(level="model").transform("mean")
    models = [str(model) for model in repeated.get_level_values("model").unique()]
    noise = SeedNoise(
        residuals=residuals.to_numpy(dtype=np.float64),
        freedom=len(repeated) - len(models),
        delta_size=size.reindex(family.models).to_numpy(dtype=np.float64),
        models=sorted(models, key=family.models.index),
    )
    return noise, _said(noise, family, int((~complete).sum()))


def draw_losses(family: Family, noise: SeedNoise, draws: int, random: np.random.Generator) -> FloatArray:
    """Losses (draws, M, K) that the family might as well have shown: its means plus noise of means over its seeds."""
    models = len(family.models)
    mixed = random.standard_normal((draws, models, len(noise.residuals))) @ noise.residuals / np.sqrt(noise.freedom)
    scale = np.sqrt(random.chisquare(noise.freedom, size=draws) / noise.freedom)  # one for all: the variance is pooled
    mixed = mixed / scale[:, None, None]
    single = mixed[..., :1] + mixed[..., 1:] * noise.delta_size
    return np.asarray(family.loss + single / np.sqrt(family.seeds))


def _by_run(rows: pd.DataFrame, name: str, family: Family) -> pd.DataFrame:
    """Column ``name`` with a row for each (model, seed) and a column for each k."""
    frame = pd.DataFrame(
        {
            "model": rows["model"].astype(str).to_numpy(),
            "seed": rows["seed"].to_numpy(),
            "k": numbers(rows, "k"),
            name: numbers(rows, name, positive=False),
        }
    )
    return frame.set_index(["model", "seed", "k"])[name].unstack("k")[family.levels]


def _said(noise: SeedNoise, family: Family, incomplete: int) -> list[str]:
    said = []
    alone = [model for model in family.models if model not in noise.models]
    if alone:
        have = "has" if len(alone) == 1 else "have"
        said.append(f"the seed noise of {', '.join(alone)}, which {have} no second seed, is taken from other sizes")
    if noise.freedom < 5:
        said.append(f"seed noise rests on few degrees of freedom ({noise.freedom}): intervals are wide and rough")
    if incomplete:
        said.append(f"{incomplete} runs lack some k and are left out of the seed noise")
    return said

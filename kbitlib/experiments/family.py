"""The family: every member trained, and what a member is to the experiments that come after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from kbitlib.data.batches import windows
from kbitlib.data.corpus import load as load_corpus
from kbitlib.data.corpus import prepare
from kbitlib.models.layers import block_linears, weight_of
from kbitlib.models.pretrained import CALIBRATION, Pretrained, load_pretrained
from kbitlib.runs.store import Store
from kbitlib.runs.sweep import sweep
from kbitlib.training.trainer import Training, held_out_windows, load_model, train

COLUMNS = [
    *("model", "seed", "params_nonemb", "params", "tokens", "format", "method", "element", "k", "block"),
    *("bits_per_weight", "total_bits", "loss", "loss_se", "delta", "delta_se", "total_bits_all"),
]


@dataclass(frozen=True)
class Member:
    """A model of a family with the held-out windows (n, context + 1) it is measured on and those of its training text
    (n, context) that methods calibrate on; ``identity`` begins its records."""

    model: nn.Module
    windows: np.ndarray
    calibration: np.ndarray
    identity: dict[str, Any]
    device: str


def load_member(settings: Training | Pretrained, store: Store) -> Member:
    """A trained member, trained first if it is not there, or a pretrained one from its folder."""
    if isinstance(settings, Pretrained):
        model, tokens = load_pretrained(settings, store)
        measured = windows(tokens["test"], count_tokens=settings.held_out, context=settings.context)
        seen = calibration_windows(tokens["train"], settings.context)
        return Member(model, measured, seen, identity(settings, model), settings.device)
    record = store.get_or_compute(train, settings)
    splits = load_corpus(store.get_or_compute(prepare, settings.corpus))
    model = load_model(settings, record)
    seen = calibration_windows(splits["train"], settings.shape.context)
    return Member(model, held_out_windows(settings, splits), seen, identity(settings, model), settings.device)


def calibration_windows(tokens: np.ndarray, context: int) -> np.ndarray:
    """Windows (n, context) spread over the training text."""
    count = min(CALIBRATION, (len(tokens) - 1) // context * context)
    return windows(tokens, count_tokens=count, context=context)[:, :-1]


def identity(settings: Training | Pretrained, model: nn.Module | None = None) -> dict[str, Any]:
    """The columns that say which model a record is about; a pretrained model's tokens are unknown, so 0."""
    if isinstance(settings, Training):
        shape = settings.shape
        sizes = {"params_nonemb": shape.params_nonemb, "params": shape.params, "tokens": settings.tokens[-1]}
        return {"model": shape.name, "seed": settings.seed, **sizes}
    assert model is not None
    inside = sum(weight_of(module).numel() for _, module in block_linears(model))
    sizes = {"params_nonemb": inside, "params": sum(p.numel() for p in model.parameters()), "tokens": 0}
    return {"model": settings.name, "seed": 0, **sizes}


def lengths(settings: Training) -> list[Training]:
    """A run cut off at each of its lengths D, the shortest first."""
    return [settings.model_copy(update={"tokens": settings.tokens[: n + 1]}) for n in range(len(settings.tokens))]


def train_family(members: Sequence[Training], store: Store, engine: str) -> pd.DataFrame:
    """Train every member, one length after the other so that estimates of the time left come early; the family's
    table."""
    (corpus,) = sweep(prepare, [members[0].corpus], store, engine="serial", label="corpus")
    for split in ("validation", "test"):
        held_out_windows(members[0], load_corpus(corpus), split)  # too little text is told before hours of training
    rows = []
    for n, length in enumerate(members[0].tokens):
        grid = [lengths(member)[n] for member in members]
        records = sweep(train, grid, store, engine=engine, cost=cost, label=f"training to {length:,} tokens")
        rows += [family_row(settings, record.rows[0]) for settings, record in zip(grid, records, strict=True)]
    return pd.DataFrame(rows).sort_values(["params_nonemb", "seed", "tokens"], ignore_index=True)


def cost(settings: Training) -> float:
    """What one more length of a run costs, in FLOPs; small models are slower a FLOP, which only makes estimates
    cautious."""
    before = settings.tokens[-2] if len(settings.tokens) > 1 else 0
    return settings.shape.flops_per_token() * (settings.tokens[-1] - 0.8 * before)


def family_row(settings: Training, row: dict[str, Any]) -> dict[str, Any]:
    """A record of the family's table: the model as trained, in 32 bits."""
    who = identity(settings)
    bits = {"bits_per_weight": 32.0, "total_bits": 32 * who["params_nonemb"], "total_bits_all": 32 * who["params"]}
    form = {"format": "fp32", "method": "none", "element": "float", "k": 32, "block": 0, "delta": 0.0, "delta_se": 0.0}
    full = {**who, **form, **bits, **row, "flops": row["flops"], "learning_rate": settings.rate}
    return {column: full[column] for column in [*COLUMNS, "validation_loss", "flops", "learning_rate"]}

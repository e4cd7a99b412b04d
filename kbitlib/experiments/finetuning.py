"""Quantization-aware fine-tuning over a family: what a few more tokens through rounded weights recover."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from kbitlib.data.corpus import load as load_corpus
from kbitlib.data.corpus import prepare
from kbitlib.experiments.family import COLUMNS, load_member
from kbitlib.experiments.quantization import describe
from kbitlib.models.quantized import quantized_copy
from kbitlib.models.transformer import Transformer
from kbitlib.runs.store import Result, Store
from kbitlib.runs.sweep import sweep
from kbitlib.training.evaluate import compare, window_losses
from kbitlib.training.finetune import finetune
from kbitlib.training.trainer import Training


class Tuning(BaseModel):
    """One model, the format it is tuned through (None is the control in full precision), how long and how fast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: Training
    format: str | None
    tokens: int = Field(ge=1)
    rate: float = Field(gt=0)  # as a share of the training's own peak rate


def tune_member(settings: Tuning, store: Store) -> Result:
    """Fine-tune a member and measure it: a step of the store, one row.

    ``delta`` is against the same member in full precision before fine-tuning, on the same held-out tokens.
    """
    member = load_member(settings.training, store)
    assert isinstance(member.model, Transformer)
    train = load_corpus(store.get_or_compute(prepare, settings.training.corpus))["train"]
    rate = settings.rate * settings.training.rate
    tuned, _ = finetune(
        member.model, settings.training, train, format=settings.format, tokens=settings.tokens, learning_rate=rate
    )
    baseline = window_losses(member.model, member.windows, member.device)
    if settings.format is None:
        nonemb, every = member.identity["params_nonemb"], member.identity["params"]
        what = {"format": "fp32", "method": "finetuned", "element": "float", "k": 32, "block": 0}
        size = {"bits_per_weight": 32.0, "total_bits": 32 * nonemb, "total_bits_all": 32 * every}
        measured = window_losses(tuned, member.windows, member.device)
    else:
        rounded, stored = quantized_copy(tuned, settings.format)
        what = describe(settings.format) | {"method": "qat"}
        bits = {"bits_per_weight": stored.bits_per_weight, "total_bits": stored.quantized_bits}
        size = {**bits, "total_bits_all": stored.total_bits_all}
        measured = window_losses(rounded, member.windows, member.device)
    row = {**member.identity, **what, **size, **compare(measured, baseline)}
    return Result(rows=[{column: row[column] for column in COLUMNS} | {"finetune_tokens": settings.tokens}])


def tuning_grid(
    members: Sequence[Training], formats: Sequence[str], tokens: Sequence[int], rate: float
) -> list[Tuning]:
    """Each member through each format, and in full precision as the control, at each length."""
    return [
        Tuning(training=member, format=format, tokens=length, rate=rate)
        for member in members
        for format in (None, *formats)
        for length in tokens
    ]


def tune_family(grid: Sequence[Tuning], store: Store, engine: str) -> pd.DataFrame:
    """The table of all fine-tuned members."""
    records = sweep(tune_member, grid, store, engine=engine, cost=cost, label="fine-tuning")
    table = pd.DataFrame([row for record in records for row in record.rows])
    return table.sort_values(["params_nonemb", "seed", "k", "finetune_tokens"], ignore_index=True)


def cost(settings: Tuning) -> float:
    """What a job costs, in FLOPs."""
    return settings.training.shape.flops_per_token() * settings.tokens

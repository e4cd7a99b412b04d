"""Every model in every format: bits counted in full, loss by paired differences on the same held-out tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from kbitlib.experiments.family import COLUMNS, load_member
from kbitlib.models.pretrained import Pretrained
from kbitlib.models.quantized import quantized_copy
from kbitlib.quant import Format
from kbitlib.runs.store import Result, Store
from kbitlib.runs.sweep import sweep
from kbitlib.training.evaluate import compare, window_losses
from kbitlib.training.trainer import Training


class Quantizing(BaseModel):
    """One model, the formats of one data type, and the method that chooses the codes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: Training | Pretrained
    formats: tuple[str, ...]
    method: Literal["rtn", "gptq", "awq", "hqq", "rotation", "outliers"] = "rtn"


def quantize_member(settings: Quantizing, store: Store) -> Result:
    """Quantize a model in each format and measure it; a step of the store, one row a format.

    A method that does not take the model leaves no row, and why in the file "refused".
    """
    member = load_member(settings.member, store)
    baseline = window_losses(member.model, member.windows, member.device)
    rows = []
    for name in settings.formats:
        try:
            quantized, size = quantized_copy(member.model, name, settings.method, member.calibration)
        except ValueError as reason:
            if settings.method == "rtn":
                raise
            return Result(rows=[], files={"refused": str(reason).encode()})
        losses = window_losses(quantized, member.windows, member.device)
        sizes = {
            "bits_per_weight": size.bits_per_weight,
            "total_bits": size.quantized_bits,
            "total_bits_all": size.total_bits_all,
        }
        how = {**describe(name), "method": settings.method}
        rows.append({**member.identity, **how, **sizes, **compare(losses, baseline)})
    return Result(rows=[{column: row[column] for column in COLUMNS} for row in rows])


def describe(name: str) -> dict[str, Any]:
    """The columns that say in which format a record is, rounded to nearest."""
    format = Format.parse(name)
    return {"format": name, "method": "rtn", "element": format.element, "k": format.k, "block": format.block}


def quantization_grid(
    members: Sequence[Training | Pretrained], formats: dict[str, tuple[str, ...]], method: str = "rtn"
) -> list[Quantizing]:
    """One job a model and data type."""
    return [
        Quantizing.model_validate({"member": member, "formats": names, "method": method})
        for member in members
        for names in formats.values()
    ]


def quantize_family(grid: Sequence[Quantizing], store: Store, engine: str) -> pd.DataFrame:
    """The table of all models in all formats."""
    records = sweep(quantize_member, grid, store, engine=engine, cost=cost, label="quantization")
    table = pd.DataFrame([row for record in records for row in record.rows])
    order = ["params_nonemb", "model", "seed", "element", "k", "block", "method", "format"]
    return table.sort_values(order, ignore_index=True)


def refusals(grid: Sequence[Quantizing], store: Store) -> dict[str, str]:
    """Why a method did not take a model, by method: the last model's reason."""
    records = {job.method: store.get_or_compute(quantize_member, job) for job in grid}
    return {method: record.read("refused").decode() for method, record in records.items() if "refused" in record.files}


def cost(settings: Quantizing) -> float:
    """What evaluating a job's formats costs, in FLOPs; a pretrained model's size is not known before it is read."""
    member = settings.member
    each = member.shape.flops_per_token() if isinstance(member, Training) else 1
    return each * len(settings.formats)

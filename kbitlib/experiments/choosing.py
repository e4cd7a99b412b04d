"""What a plan compares: formats with what they cost, and the rows that a law of the loss is fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from kbitlib.quant import Format

LARGE = (4096, 4096)  # a weight on which what is stored once a tensor costs next to nothing
COSTS = ["format", "k", "data_type", "block", "bits_per_weight"]


def offers(formats: Sequence[str]) -> pd.DataFrame:
    """Formats by name as ``laws.planner.plan`` takes them, at the bits a weight they cost in a large model.

    ``bf16`` is not quantized; a block of 0 is a whole row. ValueError for what is no format.
    """
    rows = [(name, 16.0, "float", 0.0, 16.0) if name == "bf16" else _offer(Format.parse(name)) for name in formats]
    return pd.DataFrame(rows, columns=COSTS)


def _offer(form: Format) -> tuple[str, float, str, float, float]:
    return str(form), float(form.k), form.element, float(form.block), form.bits_per_weight(LARGE)


def offers_of(table: pd.DataFrame) -> pd.DataFrame:
    """The formats of quantization records, at the mean of the bits a weight that they cost in these models."""
    first = table.rename(columns={"element": "data_type"}).groupby("format", as_index=False)
    return first.agg({name: "mean" if name == "bits_per_weight" else "first" for name in COSTS if name != "format"})


def with_full_precision(table: pd.DataFrame) -> pd.DataFrame:
    """Quantization records, and for every model and seed a row at 16 bits: the loss that theirs are compared with."""
    full = table.drop_duplicates(["model", "seed"])
    full = full.assign(format="bf16", method="none", element="float", k=16.0, block=0, bits_per_weight=16.0)
    bits = 16.0 * full["params_nonemb"]
    full = full.assign(total_bits=bits, loss=full["loss"] - full["delta"], delta=0.0, delta_se=0.0)
    return pd.concat([full, table], ignore_index=True)

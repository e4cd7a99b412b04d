"""How fast this machine quantizes, measured once and kept as a record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from kbitlib.experiments.speed import fixed_formats, in_own_process
from kbitlib.runs.store import Result, Store


class Timing(BaseModel):
    """A float32 matrix (size, size), quantized in every fixed data type at these widths, so many rounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    rounds: int
    bit_widths: tuple[int, ...]


def time_quantization(settings: Timing, store: Store) -> Result:
    """Milliseconds to quantize and to restore, ours and peers'; a step of the store, one row a task."""
    formats = fixed_formats(settings.bit_widths)
    options = ("--size", str(settings.size), "--rounds", str(settings.rounds), "--formats", *formats)
    return Result(rows=in_own_process("quantize", *options))

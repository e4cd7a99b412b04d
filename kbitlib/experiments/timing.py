"""How fast this machine quantizes, multiplies and generates, measured once and kept as records."""

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


class Products(BaseModel):
    """A weight (rows, columns) in each format, multiplied with inputs of each batch, so many rounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    columns: int
    batches: tuple[int, ...]
    rounds: int
    formats: tuple[str, ...]
    device: str
    peers: bool


class Generation(BaseModel):
    """A decoder of random weights that writes so many tokens at each of these widths, 16 being unquantized."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int
    depth: int
    heads: int
    bits: tuple[int, ...]
    tokens: int
    seed: int


def time_quantization(settings: Timing, store: Store) -> Result:
    """Milliseconds to quantize and to restore, ours and peers'; a step of the store, one row a task."""
    formats = fixed_formats(settings.bit_widths)
    options = ("--size", str(settings.size), "--rounds", str(settings.rounds), "--formats", *formats)
    return Result(rows=in_own_process("quantize", *options))


def time_products(settings: Products, store: Store) -> Result:
    """Milliseconds of products, ours and peers'; a step of the store, rows as `measure_products` tells them."""
    return Result(rows=in_own_process("matmul", *as_options(settings)))


def time_generation(settings: Generation, store: Store) -> Result:
    """Tokens a second and memory at each width; a step of the store, rows as `measure_generation` tells them."""
    return Result(rows=in_own_process("generate", *as_options(settings)))


def as_options(settings: BaseModel) -> list[str]:
    """Settings as options of `python -m kbitlib.experiments.speed`: `--rows 64 --batches 1 32 --no-peers`."""
    options = []
    for name, value in settings.model_dump().items():
        if isinstance(value, bool):
            options += [] if value else [f"--no-{name}"]
        else:
            options += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return options

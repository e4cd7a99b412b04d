"""`kbit bench`: how fast this machine is."""

from __future__ import annotations

import json

import click

from kbitlib.cli.options import as_json, require_cuda


@click.group()
def bench() -> None:
    """How fast this machine is, ours beside installed peers, in turns in one process."""


rounds = click.option("--rounds", default=9, show_default=True, type=click.IntRange(1, 101))


@bench.command("quantize")
@click.option("--size", default=4096, show_default=True, type=click.IntRange(64, 16384), help="Rows and columns.")
@rounds
@as_json
def bench_quantize(size: int, rounds: int, as_json: bool) -> None:
    """How long quantizing a matrix and restoring it takes, in every fixed data type."""
    from kbitlib.experiments.speed import in_own_process

    rows = in_own_process("quantize", "--size", str(size), "--rounds", str(rounds))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{row['implementation']:14} {row['format']:16} {row['task']:12} {row['ms']:9.2f} ms")


@bench.command("matmul")
@click.option("--size", default=4096, show_default=True, type=click.IntRange(64, 65536), help="Rows and columns.")
@click.option("--rows", type=click.IntRange(64, 65536), help="Outputs of the weight, where not --size.")
@click.option("--columns", type=click.IntRange(64, 65536), help="Inputs of the weight, where not --size.")
@click.option("--batches", default="1,32", show_default=True, help="Numbers of input rows.")
@click.option("--formats", help="Format strings, such as nf4-b64,int8-b64; every width by default.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@rounds
@as_json
def bench_matmul(
    size: int,
    rows: int | None,
    columns: int | None,
    batches: str,
    formats: str | None,
    device: str,
    rounds: int,
    as_json: bool,
) -> None:
    """How long a product with a packed weight takes, weights rotated through more than the cache holds."""
    import pandas as pd

    from kbitlib.experiments.speed import in_own_process
    from kbitlib.report.speed import products_text, targets

    rows, columns = rows or size, columns or size
    options = ["--rows", rows, "--columns", columns, "--rounds", rounds, "--device", device]
    options += ["--batches", *whole_numbers("--batches", batches)]
    if formats:
        options += ["--formats", *packable(formats, columns)]
    if device == "cuda":
        require_cuda()
    found = in_own_process("matmul", *map(str, options))
    if as_json:
        found += [target.row for target in targets(pd.DataFrame(found))]
    click.echo(json.dumps(found, indent=1) if as_json else products_text(found))


@bench.command("generate")
@click.option("--width", default=2048, show_default=True, type=click.IntRange(8, 8192))
@click.option("--depth", default=20, show_default=True, type=click.IntRange(1, 128))
@click.option("--heads", default=16, show_default=True, type=click.IntRange(1, 128))
@click.option("--bits", default="16,8,4,3,2", show_default=True, help="Widths; 16 is not quantized.")
@click.option("--tokens", default=32, show_default=True, type=click.IntRange(1, 4096))
@as_json
def bench_generate(width: int, depth: int, heads: int, bits: str, tokens: int, as_json: bool) -> None:
    """How many tokens a second a decoder of random weights writes at each width, and the memory it takes."""
    from kbitlib.experiments.speed import in_own_process
    from kbitlib.models.transformer import Shape

    Shape(width=width, depth=depth, heads=heads)
    options = ["--width", width, "--depth", depth, "--heads", heads, "--tokens", tokens]
    found = in_own_process("generate", *map(str, options), "--bits", *widths(bits))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for row in found:
        most = "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f} MiB at most"
        memory = f"{most}, predicted {row['predicted_bytes'] / 2**20:.1f}"
        click.echo(f"k = {row['k']:<3} {row['tokens_per_s']:9.1f} tokens a second   {memory}")


def whole_numbers(name: str, given: str, least: int = 1, most: int = 4096) -> list[str]:
    """Numbers set apart by commas, as they are spelled; raises ValueError naming the first that is none or not within
    the limits."""
    numbers = [part.strip() for part in given.split(",")]
    for number in numbers:
        if not number.isdecimal() or not least <= int(number) <= most:
            raise ValueError(f"{name} takes whole numbers from {least} to {most}, set apart by commas, not {number!r}")
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise ValueError(f"{name} names {twice[0]} twice")
    return numbers


def widths(given: str) -> list[str]:
    """Bit widths set apart by commas: 1 to 8, or 16 for what is not quantized."""
    numbers = whole_numbers("--bits", given, 1, 16)
    if wrong := [number for number in numbers if 8 < int(number) < 16]:
        raise ValueError(f"--bits takes 1 to 8, and 16 for what is not quantized, not {wrong[0]!r}")
    return numbers


def packable(given: str, columns: int) -> list[str]:
    """Format strings set apart by commas; raises ValueError for one that is none or that no product takes."""
    from kbitlib.kernels import obstacle
    from kbitlib.quant import Format

    formats = [Format.parse(name.strip()) for name in given.split(",")]
    for format in formats:
        if reason := obstacle(format, columns):
            raise ValueError(reason)
    return [str(format) for format in formats]

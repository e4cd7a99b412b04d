"""`kbit formats`, and the commands that read and write the weights of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kbitlib.cli.options import as_json


@click.command()
@as_json
def formats(as_json: bool) -> None:
    """Every data type at every width, with exact bits per weight of a 4096 x 4096 matrix; then llama.cpp's types.

    gguf is llama.cpp's type whose blocks hold the same.
    """
    from kbitlib.quant.format import GGUF, every_format

    gguf = {ours: theirs for theirs, (_, _, ours) in GGUF.items()}
    rows = [
        {"format": str(one), "element": one.element, "k": one.k}
        | {"bits_per_weight": one.bits_per_weight((4096, 4096)), "gguf": gguf.get(str(one))}
        for one in every_format()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        same = f"   = llama.cpp {row['gguf']}" if row["gguf"] else ""
        click.echo(f"{row['format']:18} {row['element']:10} {row['k']:>5g} {row['bits_per_weight']:10.5f}{same}")
    for name, (size, weights, _) in sorted(GGUF.items(), key=lambda item: item[1][0] / item[1][1]):
        click.echo(f"{name:18} {'llama.cpp':16} {8 * size / weights:10.5f}")


@click.command("quantize")
@click.argument("source", metavar="SRC")
@click.option("--format", "format_", required=True, help="A format string, such as nf4-b64; kbit formats lists them.")
@click.option("--method", default="rtn", show_default=True, help="rtn, gptq, awq, hqq, rotation or outliers.")
@click.option("--calibration", metavar="TEXT", help="A text file; gptq, awq and outliers need one.")
@click.option("--out", required=True, metavar="DIR", help="A folder that does not exist yet.")
@as_json
def quantize_command(source: str, format_: str, method: str, calibration: str | None, out: str, as_json: bool) -> None:
    """Quantize SRC, a .safetensors file or a Hugging Face model folder, into DIR; what is kept as it is, is listed."""
    from kbitlib.models.checkpoint import quantize_checkpoint

    show_checkpoint(quantize_checkpoint(source, format_, out, method, calibration).summary(), as_json)


@click.command("dequantize")
@click.argument("folder", metavar="DIR")
@click.option("--out", required=True, metavar="FILE", help="A .safetensors file that does not exist yet.")
@as_json
def dequantize_command(folder: str, out: str, as_json: bool) -> None:
    """Write a quantized folder's tensors to one file, with the names, shapes and types they had."""
    from kbitlib.models.checkpoint import dequantize_checkpoint

    dequantize_checkpoint(folder, out)
    size = Path(out).stat().st_size
    click.echo(json.dumps({"file": out, "bytes": size}) if as_json else f"{out}: {size} bytes")


@click.command("inspect")
@click.argument("folder", metavar="DIR")
@as_json
def inspect_command(folder: str, as_json: bool) -> None:
    """Format, shape, bits a weight and relative error of each tensor in a quantized folder, and what was kept."""
    from kbitlib.models.checkpoint import Checkpoint

    show_checkpoint(Checkpoint(folder).summary(), as_json)


@click.command("eval")
@click.argument("folder", metavar="DIR")
@click.option("--text", required=True, metavar="FILE", help="The text to measure on.")
@as_json
def eval_command(folder: str, text: str, as_json: bool) -> None:
    """Loss on a text of a model folder, quantized or not, with its standard error; bits and bytes of what is stored."""
    from kbitlib.training.text_loss import text_loss

    facts = text_loss(folder, text)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    click.echo(f"loss {facts['loss']:.5f} +- {facts['loss_se']:.5f} nats a token ({facts['task']}),")
    click.echo(f"{facts['windows']} windows of {facts['context']} tokens; the standard error is over windows")
    click.echo(f"{facts['bits']} bits = {facts['bytes']} bytes in all")


def show_checkpoint(facts: dict[str, Any], as_json: bool) -> None:
    """Print what `Checkpoint.summary` tells."""
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for row in facts["tensors"]:
        kind, last = row["format"] or row["dtype"], f"kept: {row['role']}"
        last = f"error {row['error']:.3g}" if row["format"] and row["error"] is not None else last
        click.echo(f"{row['name']}  {kind}  {row['shape']}  {row['bits_per_weight']:.4f} bits  {last}")
    click.echo(f"{facts['method']}: {facts['bits_per_weight']:.4f} bits a weight, {facts['bytes']} bytes in all")

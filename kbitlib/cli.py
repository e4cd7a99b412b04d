"""The command line, ``kbit``. Bad input ends in one sentence and exit code 2; a chapter that failed in exit code 1."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


class Commands(click.Group):
    """Turns what the library refuses into one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from kbitlib.runs.store import StoreBusy, StoreError

        try:
            return super().invoke(ctx)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except (StoreBusy, StoreError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:  # a full disk, or a folder that cannot be written
            raise click.ClickException(f"cannot use {error.filename or 'a file'}: {error.strerror or error}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kbit-lab")
def main() -> None:
    """A laboratory for k-bit inference scaling laws."""


@main.command()
@click.argument("chapters", nargs=-1, metavar="[CHAPTER]...")
@click.option("--profile", required=True, help="A profile in params/: smoke, laptop or gpu.")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter, its value as JSON.")
@click.option("--engine", help="local (a process a core), serial, or a Dask scheduler, tcp://host:port.")
@click.option("--wait", is_flag=True, help="If another run holds the store, wait for it rather than leave.")
def run(
    chapters: tuple[str, ...], profile: str, given: tuple[tuple[str, str], ...], engine: str | None, wait: bool
) -> None:
    """Run chapters (all by default) with a profile, and write its report."""
    from kbitlib.experiments.runner import run_chapters

    values = {name: parse(name, value) for name, value in given} | ({"engine": engine} if engine else {})
    every = profile_settings(profile, values, chapters)
    chosen = {name: every[name] for name in every if not chapters or name in chapters}
    first = next(iter(chosen.values()))
    with first.store.lock(wait=wait), shown_progress(first.store.root):
        failed = run_chapters(chosen, every, click.echo)
    click.echo(f"report: {relative(first.folder / 'index.html')}")
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(chosen)} chapters failed: {', '.join(failed)}")


@main.command()
@click.option("--profile", default="laptop", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def status(profile: str, as_json: bool) -> None:
    """What of a profile is done, failed, stale or never run; the size of its store."""
    from kbitlib.experiments.runner import report_status
    from kbitlib.report.numbers import file_size
    from kbitlib.runs.progress import progress_line

    every = profile_settings(profile, {}, ())
    facts = report_status(every)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name, chapter in facts["chapters"].items():
        click.echo(f"{name:24} {chapter['status']}" + (f": {chapter['error']}" if chapter.get("error") else ""))
    store = facts["store"]
    counts = [
        f"{store['records']} done",
        *(f"{store[state]} {state}" for state in ("failed", "stale", "never") if state in store),
    ]
    click.echo(f"records: {', '.join(counts)} run; store {file_size(store['bytes'])}")
    if line := progress_line(next(iter(every.values())).store.root):
        click.echo(f"last: {line}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
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


@main.command("quantize")
@click.argument("source", metavar="SRC")
@click.option("--format", "format_", required=True, help="A format string, such as nf4-b64; kbit formats lists them.")
@click.option("--method", default="rtn", show_default=True, help="rtn, gptq, awq, hqq, rotation or outliers.")
@click.option("--calibration", metavar="TEXT", help="A text file; gptq, awq and outliers need one.")
@click.option("--out", required=True, metavar="DIR", help="A folder that does not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def quantize_command(source: str, format_: str, method: str, calibration: str | None, out: str, as_json: bool) -> None:
    """Quantize SRC, a .safetensors file or a Hugging Face model folder, into DIR; what is kept as it is, is listed."""
    from kbitlib.models.checkpoint import quantize_checkpoint

    show_checkpoint(quantize_checkpoint(source, format_, out, method, calibration).summary(), as_json)


@main.command("dequantize")
@click.argument("folder", metavar="DIR")
@click.option("--out", required=True, metavar="FILE", help="A .safetensors file that does not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def dequantize_command(folder: str, out: str, as_json: bool) -> None:
    """Write a quantized folder's tensors to one file, with the names, shapes and types they had."""
    from kbitlib.models.checkpoint import dequantize_checkpoint

    dequantize_checkpoint(folder, out)
    size = Path(out).stat().st_size
    click.echo(json.dumps({"file": out, "bytes": size}) if as_json else f"{out}: {size} bytes")


@main.command("inspect")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def inspect_command(folder: str, as_json: bool) -> None:
    """Format, shape, bits a weight and relative error of each tensor in a quantized folder, and what was kept."""
    from kbitlib.models.checkpoint import Checkpoint

    show_checkpoint(Checkpoint(folder).summary(), as_json)


@main.command("eval")
@click.argument("folder", metavar="DIR")
@click.option("--text", required=True, metavar="FILE", help="The text to measure on.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
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


@main.group()
def bench() -> None:
    """How fast this machine is, ours beside installed peers, in turns in one process."""


rounds = click.option("--rounds", default=9, show_default=True, type=click.IntRange(1, 101))
as_json = click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")


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


def require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ValueError("device = 'cuda': PyTorch finds no CUDA device here; cpu is allowed")


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


def profile_settings(profile: str, given: dict[str, Any], chapters: tuple[str, ...]) -> dict[str, Any]:
    """The settings of every chapter of a profile with what was given, all checked before anything runs.

    Raises ValueError for an unknown profile, chapter or parameter, or a value that is not allowed.
    """
    from kbitlib.experiments.plan import plan
    from kbitlib.experiments.settings import CHAPTERS, check, parameters

    for name in chapters:
        if name not in CHAPTERS:
            raise ValueError(f"there is no chapter {name!r}; there are {', '.join(CHAPTERS)}")
    takers = {name: CHAPTERS[name].model_fields for name in chapters or CHAPTERS}
    for name in given:
        if not any(name in fields for fields in takers.values()):
            known = dict.fromkeys(field for fields in takers.values() for field in fields)
            raise ValueError(f"no chapter that is to run takes a parameter {name!r}; they take {', '.join(known)}")
    in_order = [*chapters, *(name for name in CHAPTERS if name not in chapters)]  # what was asked for is told first
    checked = {name: check(name, parameters(profile, name, given)) for name in in_order}
    every = {name: checked[name] for name in CHAPTERS}
    if next(iter(every.values())).device == "cuda":
        require_cuda()
    for settings in every.values():
        plan(settings)  # reads the corpus and the model folders, so that what they lack is told now
    return every


def parse(name: str, value: str) -> Any:
    """A parameter's value from the command line: JSON if it is JSON, else a string; paths made absolute."""
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    if name == "corpus" and isinstance(parsed, str):
        return absolute(parsed)
    if name == "models" and isinstance(parsed, str):
        return [absolute(parsed)]
    if name == "models" and isinstance(parsed, list):
        return [absolute(item) if isinstance(item, str) else item for item in parsed]
    return parsed


def absolute(path: str) -> str:
    """A path that exists made absolute, since a notebook's kernel may stand elsewhere; anything else as it is."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


@contextmanager
def shown_progress(root: Path) -> Iterator[None]:
    """Show how far the sweep at work in a store is: one line that is drawn over on a terminal, plain lines
    elsewhere."""
    from kbitlib.runs.progress import Progress

    stop, terminal = threading.Event(), sys.stderr.isatty()
    began = time.time()

    def watch() -> None:
        last, spoken = "", 0.0
        while not stop.wait(1.0):
            progress = Progress.read(root)
            if progress is None or progress.time < began:
                continue
            line = progress.line()
            if terminal and line != last:
                sys.stderr.write(f"\r\033[K    {line}")
                sys.stderr.flush()
            elif not terminal and line != last and time.time() - spoken > 15:
                sys.stderr.write(f"    {line}\n")
                spoken = time.time()
            last = line

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if terminal:
            sys.stderr.write("\r\033[K")


def relative(path: Path) -> str:
    """A path as seen from here, if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


if __name__ == "__main__":
    main()

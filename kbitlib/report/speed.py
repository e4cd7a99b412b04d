"""Records of products (`experiments.products`) as tables: who is how fast, what limits it, which targets are met."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kbitlib.report.numbers import moment

OURS, BEFORE = "kbitlib", "dequantize first"
BUSY = 0.1  # of its time that a product waited for a processor: above, it is not the machine's best
AIMED_AT = 4096
LEVELS = "nf{k}-b64"  # the format by which widths are compared
# Share of a GPU's copy bandwidth at batch 1, and how many times as fast as bfloat16 on a CPU, by width.
SHARES = {8: 0.80, 4: 0.65, 3: 0.50, 2: 0.45}
GAINS = {4: 5.0, 5: 4.0, 6: 4.0, 7: 3.0, 8: 3.0}


@dataclass(frozen=True)
class Target:
    """What was aimed at: `found` is to be at least, or at most, `bar`."""

    what: str
    found: float
    bar: float
    least: bool = False

    @property
    def met(self) -> bool:
        return self.found >= self.bar if self.least else self.found <= self.bar

    @property
    def row(self) -> dict[str, Any]:
        """As a record, of types that JSON has."""
        return {"task": "target", **asdict(self), "found": float(self.found), "met": bool(self.met)}

    def __str__(self) -> str:
        sign = "≥" if self.least else "≤"
        return f"{'met   ' if self.met else 'MISSED'} {self.what}: {self.found:.3g}, to be {sign} {self.bar:g}"


def bandwidth(records: pd.DataFrame) -> float:
    """Bytes a millisecond that memory gave in the same run: read on a CPU, copied on a GPU."""
    memory = records[records.task == "memory"].iloc[0]
    return float(memory.bytes / memory.ms)


def products(records: pd.DataFrame, *, cached: bool = False) -> pd.DataFrame:
    """The timed products, whose weights came from memory or stayed in the cache, with `gb_per_s` and `ratio`, the time
    of the bfloat16 product of that batch over theirs."""
    found = records[(records.task == "matmul") & records.cached.eq(cached)].copy()
    plain = records[(records.implementation == "torch") & (records.format == "bf16")].set_index("batch").ms
    found["gb_per_s"] = found.bytes / found.ms / 1e6
    found["ratio"] = plain.loc[found.batch].to_numpy() / found.ms.to_numpy()
    return found.astype({"k": float, "batch": int, "activation_bits": int}).reset_index(drop=True)


def limits(records: pd.DataFrame, formats: Sequence[str], speed: float) -> pd.DataFrame:
    """What limits each of our formats at batch 1, and how many times its limit it takes (`times_limit`).

    memory_ms: its bytes at `speed`, in bytes a millisecond. cached_ms: the same product of a weight that the cache
    holds, which leaves the instructions; missing where the cache does not. The limit is the larger of the two.
    """
    chosen = products(records)
    chosen = chosen[(chosen.implementation == OURS) & (chosen.batch == 1) & (chosen.activation_bits == 16)]
    chosen = chosen.set_index("format").loc[[name for name in formats if name in set(chosen.format)]]
    inside = products(records, cached=True)
    held = inside[inside.activation_bits == 16].set_index("format").ms
    table = chosen[["k", "bits_per_weight", "bytes", "ms"]].copy()
    table["memory_ms"] = table.bytes / speed
    table["cached_ms"] = held.reindex(table.index)
    table["limit_ms"] = table[["memory_ms", "cached_ms"]].max(axis=1)
    table["limited_by"] = ["memory" if row.limit_ms == row.memory_ms else "instructions" for row in _rows(table)]
    table["times_limit"] = table.ms / table.limit_ms
    return table.reset_index()


def targets(records: pd.DataFrame, sweep: pd.DataFrame | None = None) -> list[Target]:
    """The targets that these records speak of, with what was found.

    sweep: records of a run of other batches, for what is to hold at every batch. Speeds on a CPU are aimed at for
    weights of AIMED_AT rows and columns; of others only errors and the cost of a call are judged.
    """
    table = products(records)
    found = list(_on_cuda(records, table) if records.device.iloc[0] == "cuda" else _on_cpu(table))
    if sweep is not None:
        table = pd.concat([table, products(sweep)])
    if set(table["rows"]) == set(table["columns"]) == {AIMED_AT} or records.device.iloc[0] == "cuda":
        found += _never_worse(table)
    for column, bar, what in (
        ("error_unrounded", 2e-3, "before y is rounded to bfloat16"),
        ("error_bfloat16", 2.5e-3, "after y is rounded to bfloat16"),
        ("error_float32", 1e-5, "in float32"),
    ):
        if column in table and table[column].notna().any():
            worst = table.sort_values(column, na_position="first").iloc[-1]
            found.append(Target(f"largest relative error {what} ({worst.format})", float(worst[column]), bar))
    overhead = records[records.task == "overhead"]
    if len(overhead):
        added = 1e3 * float(overhead.ms.iloc[0] - overhead.bare_ms.iloc[0])
        found.append(Target("microseconds that the operator adds to an eager call", added, 10))
    return found


def _times(table: pd.DataFrame) -> dict[Any, float]:
    """Milliseconds by implementation, format, bits of the activations and batch."""
    times: dict[Any, float] = table.set_index(["implementation", "format", "activation_bits", "batch"]).ms.to_dict()
    return times


def _on_cpu(table: pd.DataFrame) -> Iterator[Target]:
    if set(table["rows"]) != {AIMED_AT} or set(table["columns"]) != {AIMED_AT}:
        return
    times = _times(table)
    ours = {k: times.get((OURS, LEVELS.format(k=k), 16, 1)) for k in range(2, 9)}
    plain, base = times.get(("torch", "bf16", 16, 1)), ours[4]
    peer = times.get(("bitsandbytes", "nf4-b64-fp32", 16, 1))
    if base and peer:
        yield Target("batch 1: k = 4 over bitsandbytes", base / peer, 0.8)
    for k, gain in GAINS.items():
        if plain and (taken := ours[k]):
            yield Target(f"batch 1: k = {k}, times as fast as bfloat16", plain / taken, gain, least=True)
    for k, share in ((2, 0.8), (3, 1.0)):
        if base and (taken := ours[k]):
            yield Target(f"batch 1: k = {k} over k = 4", taken / base, share)
    int8, peer = times.get((OURS, "int8-b64", 16, 1)), times.get(("torch int8pack", "int8-row-bf16", 16, 1))
    if int8 and peer:
        yield Target("batch 1: int8 over PyTorch's int8 kernel", int8 / peer, 1.0)
    own = table[(table.implementation == OURS) & (table.batch == 32) & table.format.str.contains("-b64")]
    for what, chosen, bar in (("k <= 4", own[own.k <= 4], 0.9), ("k = 5 to 8", own[own.k > 4], 1.0)):
        if len(chosen):
            slowest = chosen.sort_values("ms").iloc[-1]
            yield Target(f"batch 32: {what} over bfloat16 (slowest: {_called(slowest)})", 1 / slowest.ratio, bar)


def _never_worse(table: pd.DataFrame) -> Iterator[Target]:
    times = _times(table)
    over = {key[1:]: times[(OURS, *key[1:])] / ms for key, ms in times.items() if key[0] == BEFORE}
    if over:
        form, _, batch = worst = max(over, key=lambda key: over[key])
        yield Target(f"any batch: over dequantizing first (worst: {form} at batch {batch})", over[worst], 1.0)


def _on_cuda(records: pd.DataFrame, table: pd.DataFrame) -> Iterator[Target]:
    speed = bandwidth(records)
    own = table[(table.implementation == OURS) & table.format.isin([LEVELS.format(k=k) for k in range(2, 9)])]
    first = own[own.batch == 1].set_index("k")
    for k, share in SHARES.items():
        if k in first.index:
            reached = float(first.bytes[k] / first.ms[k] / speed)
            yield Target(f"batch 1: k = {k}, share of the copy bandwidth", reached, share, least=True)
    for row in _rows(table[(table.batch == 1) & table.implementation.isin(["bitsandbytes", "torchao"])]):
        if row.k in first.index:
            yield Target(f"batch 1: k = {row.k:g} over {row.implementation}", float(first.ms[row.k] / row.ms), 1.0)
    for batch, gain in ((16, 2.0), (256, 0.9)):
        chosen = own[own.batch == batch]
        if len(chosen):
            slowest = chosen.sort_values("ms").iloc[-1]
            what = f"batch {batch}: times as fast as bfloat16 (slowest: {slowest.format})"
            yield Target(what, float(slowest.ratio), gain, least=True)


def generation_targets(rows: pd.DataFrame) -> list[Target]:
    """What one decoder's records say: each step to fewer bits faster, and memory as bits a weight predict."""
    rows, name = rows.sort_values("k", ascending=False), f"{rows.params.iloc[0] / 1e9:.2g} billion parameters"
    gains = (rows.tokens_per_s / rows.tokens_per_s.shift()).iloc[1:]
    least = rows.k[rows.index == gains.idxmin()].item()
    what = f"{name}: tokens a second over those at the next more bits (least at k = {least})"
    found = [Target(what, float(gains.min()), 1.0, least=True)]
    if rows.peak_bytes.notna().all():
        over = float((rows.peak_bytes / rows.predicted_bytes).max())
        found.append(Target(f"{name}: memory over what bits a weight predict", over, 1.1))
    return found


def _called(row: Any) -> str:
    return f"{row.format}{', 8-bit activations' if row.activation_bits == 8 else ''}"


def published_on_gpu(folder: Path) -> list[tuple[str, pd.DataFrame]]:
    """The records of products that were published from machines with a GPU, one run a size of weight, each with what
    ran it, where and when, in words. `folder` holds a folder a machine, with `matmul.csv` and `provenance.json`."""
    found = []
    for table in sorted(folder.glob("*/matmul.csv")):
        records = pd.read_csv(table)
        about = json.loads(table.with_name("provenance.json").read_bytes())
        words = f"{moment(about['started'])}, commit {(about['commit'] or 'unknown')[:10]}, PyTorch "
        words += f"{about['packages']['torch']}, `{about['command']}`, folder {table.parent.name}"
        on_gpu = records[records.device == "cuda"]
        found += [(words, run.reset_index(drop=True)) for _, run in on_gpu.groupby(["rows", "columns"])]
    return found


def products_text(rows: Sequence[Mapping[str, Any]], sweep: pd.DataFrame | None = None) -> str:
    """Records as lines to be read in a terminal: products by batch, memory, who is absent, and the `targets`."""
    records = pd.DataFrame(rows)
    first = records.iloc[0]
    table = products(records)
    columns = ("", "format", "k", "batch", "ms", "GB/s", "x bf16", "error")
    lines = ["{:18} {:20} {:>2} {:>5} {:>9} {:>7} {:>7} {:>8}".format(*columns)]
    for row in _rows(table):
        form = row.format + ("-a8" if row.activation_bits == 8 else "")
        error = "" if pd.isna(row.error_bfloat16) else f"{row.error_bfloat16:8.1e}"
        numbers = f"{row.k:2g} {row.batch:5} {row.ms:9.3f} {row.gb_per_s:7.1f} {row.ratio:7.2f} {error}"
        lines.append(f"{row.implementation:18} {form:20} {numbers}".rstrip())
    memory = records[records.task == "memory"].iloc[0]
    lines.append(f"memory: {memory.format} at {bandwidth(records) / 1e6:.1f} GB/s")
    for row in _rows(records[records.task == "overhead"]):
        added = f"{1e3 * (row.ms - row.bare_ms):.1f} of them the operator's"
        lines.append(f"an eager call of a tiny product: {1e3 * row.ms:.1f} microseconds, {added}")
    lines += [f"absent: {row.implementation} ({row.reason})" for row in _rows(records[records.task == "absent"])]
    what = f"{first.rows} x {first.columns}, {first.processor}, {first.threads} threads"
    lines.append(f"{what}; the median of the quieter half of {first.rounds} rounds")
    if count := int((table.waited > BUSY).sum()):
        lines.append(f"the machine was busy: {count} of {len(table)} products waited for a processor")
    lines += [str(target) for target in targets(records, sweep)]
    return "\n".join(lines)


def _rows(frame: pd.DataFrame) -> list[Any]:
    """The rows of a table, columns as attributes."""
    return list(frame.itertuples())

"""Which model to take, and in how many bits, where memory (and speed) are limited: the law's answer, and how sure.

A plan compares formats at their best under the limit. Where models to choose from are given, every one that fits in
every format is compared; else N may be any number, and each format takes the largest that fits. The law says what loss
to expect of each, and with what interval; a second law, of time, how fast it writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from kbitlib.laws.advice import UNITS, advice, size_of
from kbitlib.laws.export import for_json
from kbitlib.laws.facts import FittedLaw
from kbitlib.laws.fit import fit
from kbitlib.laws.outliers import RESIDUAL, flag
from kbitlib.laws.published import published
from kbitlib.laws.results import LawResults
from kbitlib.laws.tables import FULL_PRECISION, choose, column, numbers, refuse_empty_or_repeated

BLOCK, SCALE_BITS = 64, 16  # of a format that is not said otherwise: int in blocks of 64 with a 16-bit scale each
WIDTHS = range(2, 9)  # bits of an integer
LEAST_BITS = 3  # below, rounding wrecks a model more than a factor on its size can say


def parse_bytes(text: str) -> float:
    """Bytes from "8GiB", "500 MB" or "2e9"; ValueError for another unit or a size that is not positive."""
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    try:
        size = float(match[1]) * UNITS[match[2]] if match else np.nan
    except (KeyError, ValueError):
        size = np.nan
    if not (np.isfinite(size) and size > 0):
        raise ValueError(
            f"memory {text!r} is no size; a positive number of {', '.join(filter(None, UNITS))}, where case matters, "
            "is allowed"
        )
    return size


@dataclass(frozen=True)
class Plan:
    """What fits, the lowest expected loss first, and what there is to say of it.

    ``table`` has ``model`` (where models were given), ``params, k, data_type, block, format, bits_per_weight, bytes,
    loss, low, high`` (of a new run), ``gap, gap_low, gap_high, probability`` (above the first row, and that it is),
    ``tokens_per_second`` (NaN without a law of time that converged), ``beyond`` (how many times outside the rows
    fitted; 1 is within) and ``extrapolates``.
    """

    memory: float
    level: float
    table: pd.DataFrame
    sentences: list[str]

    def facts(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        rows = for_json(self.table.to_dict(orient="records"))
        return {"memory": self.memory, "level": self.level, "plan": rows, "sentences": self.sentences}


def plan(
    memory: float,
    facts: Mapping[str, Any],
    *,
    formats: pd.DataFrame | None = None,
    models: pd.DataFrame | None = None,
    tokens: float | None = None,
    speed: Mapping[str, Any] | None = None,
    tokens_per_second: float | None = None,
    level: float = 0.9,
) -> Plan:
    """What to take for ``memory`` bytes of weights, by a law's ``facts``.

    Args:
        memory: bytes; what caches and activations take is not counted.
        facts: of ``LawResults.facts`` or ``kbit fit --json``: a law of the loss in which k or total bits stand.
        formats: ``format`` and ``bits_per_weight`` a row, and ``k, data_type, block`` (0: a whole row) where they are
            known; by default int in blocks of 64 at every k that was fitted. A law whose levels are names of formats
            is looked up by ``format``, any other by ``k``.
        models: ``model, params, quantized, kept`` a row: N as the law counts it, the weights that take the format's
            bits, and those that stay at 16; by default any N, all of it quantized.
        tokens: what the model was trained on, for a law in which it stands; by default the most that was fitted.
        speed: facts of the law ``time`` (ms a token); needed for ``tokens_per_second``, the least that will do.
        level: of the intervals.

    Raises:
        ValueError: a law that knows no k or predicts something else, a number that is none, a missing column, or
            nothing that fits.
    """
    for name, value in (("memory", memory), ("tokens", tokens), ("tokens_per_second", tokens_per_second)):
        if value is not None or name == "memory":
            _refuse_outside(name, value, np.inf)
    _refuse_outside("level", level, 1.0)
    law = _law_of_loss(facts)
    time = None if speed is None else _law_of_time(speed)
    limit, room = memory, size_of(memory)
    if tokens_per_second is not None and (readable := _bytes_in(time, tokens_per_second)) < memory:
        limit = readable
        room = f"{size_of(limit)} (the most that {tokens_per_second:g} tokens a second leave of {size_of(memory)})"
    offers = _usual_formats(law) if formats is None else _checked(formats, law.by_name)
    rows = _largest(offers, limit) if models is None else _fitting(offers, models, limit, room)
    trained = law.range.get("tokens", (np.nan, np.nan))[1] if tokens is None else tokens
    rows = rows.assign(tokens=trained, level=rows["format"] if law.by_name else rows["k"])
    rows = rows.assign(tokens_per_second=1e3 / time.mean(rows) if time and time.converged else np.nan)
    table = _ranked(law, rows, level)
    return Plan(memory, level, table, advice(law, time, table, room, level))


def published_fit(family: str = "LLaMA-1") -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """A law of a family of published models: its facts, the formats and the models that were measured, as `plan` takes.

    The law is ``effective-parameters`` with a factor for each method, k and group from 3 bits up, on the text on which
    most of the family was measured, without rows that stand out; N counts the quantized weights. ValueError for an
    unknown family; case is ignored.
    """
    rows = published()
    known = {name.casefold(): name for name in rows["family"].unique()}
    if family.casefold() not in known:
        raise ValueError(f"family {family!r} (--family) has no published figures; {', '.join(known.values())} have")
    rows = choose(rows, family=known[family.casefold()])
    rows = rows[(rows["dataset"] == rows["dataset"].mode()[0]) & (rows["k"] >= LEAST_BITS) & (rows["method"] != "rtn")]
    group = [f"-g{group:g}" if group > 0 else "" for group in rows["group"]]
    name = rows["method"] + "-" + rows["k"].map("{:g}".format) + group
    rows = rows.assign(format=name.where(rows["k"] < FULL_PRECISION, "fp16"), group=rows["group"].fillna(0))
    results, warnings = _fit_without_outliers(rows)
    named = {"method": "data_type", "group": "block"}
    formats = (
        rows.rename(columns=named)
        .groupby("format", as_index=False)[["k", "data_type", "block", "bits_per_weight"]]
        .agg({"k": "first", "data_type": "first", "block": "first", "bits_per_weight": "mean"})
    )
    sizes = rows.drop_duplicates("model")
    kept = sizes["params"] - sizes["params_linear"]
    models = pd.DataFrame(
        {"model": sizes["model"], "params": sizes["params_linear"], "quantized": sizes["params_linear"], "kept": kept}
    )
    facts = results.facts()
    facts["warnings"] += [f"rows of fewer than {LEAST_BITS} bits and of rounding to nearest took no part", *warnings]
    return facts, formats, models.reset_index(drop=True)


def _fit_without_outliers(rows: pd.DataFrame) -> tuple[LawResults, list[str]]:
    """The law of published rows without those that a robust fit flags for their residual, and a sentence on each."""
    columns = {"params": "params_linear", "k": "format"}
    results = fit(rows, "effective-parameters", columns=columns)
    marked = flag(results)
    far = rows.loc[marked.loc[marked["reason"] == RESIDUAL, "row"]]
    if far.empty:
        return results, []
    said = [
        f"{row.model} in {row.format} was left out of the fit: its loss, {row.loss:.4g}, stands out of the law"
        for row in far.itertuples()
    ]
    return fit(rows.drop(index=far.index), "effective-parameters", columns=columns), said


# --- what is asked for ---


def _refuse_outside(name: str, value: Any, below: float) -> None:
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else np.nan
    if not 0 < number < below:
        allowed = f"a number between 0 and {below:g}" if np.isfinite(below) else "a positive finite number"
        raise ValueError(f"{name} is {value!r}; {allowed} is allowed")


def _law_of_loss(facts: Mapping[str, Any]) -> FittedLaw:
    law = FittedLaw.from_facts(facts)
    if law.form.response != "loss":
        raise ValueError(f"law {law.form.name} predicts {law.form.response}; a law of the loss is needed")
    if not {"k", "k_post", "total_bits"} & set(law.form.columns):
        raise ValueError(f"law {law.form.name} knows no k, so it cannot choose one; one with k or total_bits is needed")
    if {"k", "k_post"} <= set(law.form.columns):
        raise ValueError(f"law {law.form.name} has bits in training and others after it; a plan knows one of them")
    if unknown := set(law.form.columns) - {"params", "tokens", "k", "k_post", "total_bits"}:
        raise ValueError(f"law {law.form.name} needs {', '.join(sorted(unknown))}, which a plan does not know")
    return law


def _law_of_time(facts: Mapping[str, Any]) -> FittedLaw:
    law = FittedLaw.from_facts(facts)
    if law.form.name != "time":
        raise ValueError(f"law {law.form.name} predicts {law.form.response}; the law `time`, ms a token, is needed")
    return law


def _bytes_in(time: FittedLaw | None, tokens_per_second: float) -> float:
    """The most bytes that are read in the time a token may take: ms = T + c bytes, solved for bytes."""
    if time is None:
        raise ValueError(f"{tokens_per_second:g} tokens a second are asked for, but no law of time is given")
    if not time.converged:
        raise ValueError(
            f"{tokens_per_second:g} tokens a second are asked for, but the law of time did not converge; records in "
            "which a token takes longer the more bytes there are, are allowed"
        )
    fixed, log_each = time.theta.tolist()
    milliseconds = 1e3 / tokens_per_second
    if milliseconds <= fixed:
        raise ValueError(
            f"{tokens_per_second:g} tokens a second are asked for; weights of no size write more than {1e3 / fixed:.3g}"
        )
    with np.errstate(over="ignore"):  # so slow that any size will do
        return float((milliseconds - fixed) * np.exp(-log_each))


def _usual_formats(law: FittedLaw) -> pd.DataFrame:
    """Integers in blocks of 64 at each k the law was fitted to, and 16 bits unquantized where those were."""
    if law.by_name:
        raise ValueError(
            f"the law knows formats by name ({', '.join(law.levels)}): say how many bits a weight each has"
        )
    low, high = law.range["k_post" if "k_post" in law.range else "k"]
    for k in law.levels if law.levels.size else (low, high):
        if k < FULL_PRECISION and k not in WIDTHS:
            raise ValueError(
                f"the law was fitted at k = {k:g}, and integers have 2 to 8 whole bits: fit it to names of formats "
                "(kbit fit --map k=format), or say which formats there are"
            )
    widths = law.levels if law.levels.size else [k for k in WIDTHS if low <= k <= high]
    quantized = [float(k) for k in widths if k < FULL_PRECISION]
    rows = [(f"int{k:g}-b{BLOCK}", k, "int", float(BLOCK), k + SCALE_BITS / BLOCK) for k in quantized]
    if high >= FULL_PRECISION:
        rows.append(("bf16", float(FULL_PRECISION), "float", 0.0, float(FULL_PRECISION)))
    return pd.DataFrame(rows, columns=["format", "k", "data_type", "block", "bits_per_weight"])


def _checked(formats: pd.DataFrame, by_name: bool) -> pd.DataFrame:
    """Formats with their names as text, their numbers as numbers, and NaN for what is not said of them."""
    refuse_empty_or_repeated(formats)
    counted = [name for name in ("k", "bits_per_weight") if name in formats or name != "k" or not by_name]
    unsaid = {name: np.nan for name in ("k", "data_type", "block") if name not in formats}
    found = {"format": column(formats, "format").astype(str)} | {name: numbers(formats, name) for name in counted}
    return formats.assign(**unsaid | found)


# --- what there is ---


def _largest(offers: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Each format with the largest N that fits."""
    params = 8 * limit / offers["bits_per_weight"]
    return _counted(offers.assign(params=params), params, 0.0)


def _fitting(offers: pd.DataFrame, models: pd.DataFrame, limit: float, room: str) -> pd.DataFrame:
    """Every model in every format that fits the limit, ``room`` in words; ValueError where none does."""
    refuse_empty_or_repeated(models)
    column(models, "model")
    counts = {name: numbers(models, name, positive=name != "kept") for name in ("params", "quantized", "kept")}
    pairs = models[["model"]].assign(**counts).merge(offers, how="cross")
    rows = _counted(pairs, pairs["quantized"], pairs["kept"])
    fitting = rows[rows["bytes"] <= limit]
    if fitting.empty:
        least = rows.iloc[int(rows["bytes"].argmin())]
        raise ValueError(
            f"nothing fits in {room}: the smallest, {least['model']} in {least['format']}, takes "
            f"{size_of(least['bytes'])}"
        )
    return fitting.reset_index(drop=True)


def _counted(rows: pd.DataFrame, quantized: Any, kept: Any) -> pd.DataFrame:
    """Rows with ``total_bits``, of the quantized weights, and ``bytes``, of all."""
    bits = quantized * rows["bits_per_weight"]
    return rows.assign(total_bits=bits, bytes=(bits + FULL_PRECISION * kept) / 8)


# --- what to take ---


def _ranked(law: FittedLaw, rows: pd.DataFrame, level: float) -> pd.DataFrame:
    rows = rows.assign(loss=law.mean(_as_fitted(rows))).sort_values(["loss", "bytes"], ignore_index=True)
    asked = _as_fitted(rows)
    ends = law.get_prediction(asked).conf_int(1 - level, obs=True)
    outside = np.stack([law.beyond(asked[name].to_numpy(dtype=np.float64), name) for name in law.counted])
    rows = rows.assign(low=ends[0], high=ends[1], beyond=outside.max(axis=0), **law.above_first(asked, level))
    rows = rows.assign(extrapolates=rows["beyond"] > 1 + 1e-9)
    names = ["model"] if "model" in rows else []
    names += ["params", "k", "data_type", "block", "format", "bits_per_weight", "bytes", "loss", "low", "high"]
    names += ["gap", "gap_low", "gap_high", "probability", "tokens_per_second", "beyond", "extrapolates"]
    return rows[names]


def _as_fitted(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns that a law reads: k by its levels, and once more as the k after training."""
    return rows.assign(k=rows["level"], k_post=rows["k"])

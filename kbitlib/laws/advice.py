"""A plan in words: what to take, what to expect of it, what the next best costs, and how far it lies from the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kbitlib.laws.facts import FittedLaw

UNITS = {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

UNSETTLED = "The fit did not converge: what follows is of no minimum, and nobody can say how sure it is."


def advice(law: FittedLaw, time: FittedLaw | None, table: pd.DataFrame, room: str, level: float) -> list[str]:
    """What there is to say of a plan's table, its best row first, where ``room`` says how much there is.

    What the fits warn of comes last, but first where the law of the loss did not converge.
    """
    first = table.iloc[0]
    bits = f"{first['bits_per_weight']:.3g} bits a weight"
    said = [f"Take {_named(first)}: {size_of(first['bytes'])} of {room}, {bits}."]
    expected = f"Expect a loss of {first['loss']:.4g} nats a token"
    if np.isfinite(first["low"]):
        ends = f"between {first['low']:.4g} and {first['high']:.4g} ({level:.0%})"
        said.append(f"{expected}, of a new run {ends}.")
    else:
        said.append(f"{expected}; how sure that is, the fit does not say.")
    if time is not None and not time.converged:
        said.append("How fast it writes is not known: the law of time did not converge.")
    elif time is not None:
        far = float(time.beyond(first[["bytes"]].to_numpy(dtype=np.float64), "bytes")[0])
        beyond = f", an extrapolation by {far:.3g} times in bytes" if far > 1 else ""
        said.append(f"It is expected to write {_count(first['tokens_per_second'])} tokens a second{beyond}.")
    said += [_next_best(law, table, level), _extrapolation(law, table)]
    warned = [f"The fit warns: {warning}." for warning in law.warnings]
    said = [*said, *warned] if law.converged else [UNSETTLED, *warned, *said]
    return said + [f"The law of time warns: {warning}." for warning in (time.warnings if time else ())]


def _next_best(law: FittedLaw, table: pd.DataFrame, level: float) -> str:
    if len(table) == 1:
        return "Nothing else fits."
    first, second = table.iloc[0], table.iloc[1]
    said = f"The next best, {_named(second)} ({size_of(second['bytes'])}), costs {second['gap']:.4f} nats a token more"
    if not np.isfinite(second["gap_low"]):
        return f"{said}."
    said += (
        f" ({second['gap_low']:.4f} to {second['gap_high']:.4f}; {_sure(second['probability'])} sure that it is more)"
    )
    if second["gap_low"] <= 0:
        return f"{said}: at {level:.0%} the two cannot be told apart."
    scatter = law.obs_sd * (first["loss"] - law.irreducible if law.on_logs else 1.0)
    return f"{said}, on average; single models scatter by {scatter:.4f}."


def _extrapolation(law: FittedLaw, table: pd.DataFrame) -> str:
    first, outside = table.iloc[0], int(table["extrapolates"].sum())
    if first["extrapolates"]:
        ranges = {name: law.range[name] for name in law.counted}
        ends = "; ".join(f"{name} from {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items())
        return (
            f"It extrapolates: it lies {first['beyond']:.3g} times outside the rows fitted ({ends}); the interval "
            "holds only if the law does there."
        )
    if outside:
        return f"It lies within the rows fitted; {outside} of the {len(table)} choices do not."
    return "All choices lie within the rows fitted."


def _named(row: pd.Series) -> str:
    what = row["model"] if "model" in row else f"{_count(row['params'])} parameters"
    return f"{what} in {row['format']}"


def _count(number: float) -> str:
    """59.1 k, 6.48 G; numbers below a thousand as they are."""
    for letter, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def size_of(size: float) -> str:
    """6.75 GiB, 32 KiB, 700 bytes."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.3g} {unit}"
    return f"{size:.0f} bytes"


def _sure(probability: float) -> str:
    """No interval from a few models is certain."""
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"

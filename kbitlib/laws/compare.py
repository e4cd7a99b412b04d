"""Choose between laws by how they predict sizes that they have not seen, never by how they fit those that they have.

Each size is left out in turn; a law's error is the mean over sizes of the size's root mean square. Errors of two laws
at one size are paired, so their difference has its own interval, by t over sizes. Sizes share most of the rows that
predict them, so this interval is approximate; a difference within the noise of the rows themselves is a tie as well.
Criteria that count rows as independent (AICc, likelihood ratios) are given only where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kbitlib.laws.fit import fit
from kbitlib.laws.forms import FORMS
from kbitlib.laws.holdout import largest_size, leave_one_size_out, own_name
from kbitlib.laws.results import LawResults
from kbitlib.laws.tables import FloatArray, column, numbers

NESTED = {("power", "tutorial"), ("chinchilla", "frantar")}  # the first is the second at a point inside its range


@dataclass(frozen=True)
class Comparison:
    """How laws predict sizes left out: ``table``, one row a law, the best first, and ``sentences`` on what it says.

    ``rmse, low, high``: the mean over sizes of the root mean square of log residuals, and its interval; ``largest``:
    that of the largest size alone; ``difference, difference_low, difference_high``: to the best law, paired by size;
    ``verdict``: best, tied with best, worse, or not comparable (it cannot predict some size: see ``reason``); ``aicc``,
    ``log_likelihood_ratio`` (of the best law to this one) and ``p_value``: NaN where rows are not independent.

    ``by_size`` holds the error of each law (columns) at each size; ``noise_floor`` is the standard deviation of log
    responses between seeds of rows that agree in all that the laws see, None without a column ``seed`` that tells.
    """

    table: pd.DataFrame
    by_size: pd.DataFrame
    noise_floor: float | None
    sentences: list[str]


def compare(
    table: pd.DataFrame, laws: Sequence[str], *, by: str = "model", level: float = 0.95, **options: Any
) -> Comparison:
    """Compare laws for one response on the sizes in column ``by``, by leaving each out in turn.

    Laws of ``delta`` are compared on the paired gap to full precision, in which the noise that all k of a model share
    cancels; ``columns={"loss": "delta"}`` puts laws of the loss beside them. ``options`` go to ``fit``; of ``columns``
    each law takes those it uses. ValueError for fewer than two laws or sizes, an unknown law, laws of different
    responses, or where no law predicts two sizes.
    """
    response = _common_response(laws, options)
    sizes = pd.Index(pd.unique(column(table, by)), name=by)
    if len(laws) < 2 or len(sizes) < 2:
        raise ValueError(f"{len(laws)} laws on {len(sizes)} sizes cannot be compared; two of each are needed")
    fits, errors, reasons = {}, {}, {}
    for law in laws:
        own = _of_law(law, options)
        try:
            fits[law] = fit(table, law, **own)
            held_out = leave_one_size_out(table, law, by=by, **own)
            errors[law], why = held_out["rmse_log"], held_out["reason"]
        except ValueError as refusal:
            errors[law], why = pd.Series(np.nan, index=sizes), pd.Series({"all": str(refusal)})
        reasons[law] = "; ".join(f"{size}: {said}" for size, said in why.items() if said)
    by_size = pd.DataFrame(errors)
    floor = _noise_floor(table, laws, by, response, options)
    lines = _by_error(by_size, floor, level)
    best = str(lines.index[0])
    largest = largest_size(table, own_name(fits[best].surface.form.columns[0], options), by)
    lines.insert(3, "largest", by_size.loc[largest])
    lines = lines.join(_criteria(fits, best)).assign(reason=pd.Series(reasons))
    return Comparison(lines, by_size, floor, _said(lines, by_size, floor, level))


def _common_response(laws: Sequence[str], options: dict[str, Any]) -> str:
    for law in laws:
        if law not in FORMS:
            raise ValueError(f"law {law!r} is unknown; {', '.join(FORMS)} are allowed")
    responses = {law: own_name(FORMS[law].response, options) for law in laws}
    if len(set(responses.values())) > 1:
        said = ", ".join(f"{law} of {name}" for law, name in responses.items())
        raise ValueError(f"laws of different columns cannot be compared ({said}); columns can give them the same")
    return next(iter(responses.values()), "loss")


def _of_law(law: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with those of the columns that this law uses."""
    used = (*FORMS[law].columns, FORMS[law].response)
    columns = {name: own for name, own in (options.get("columns") or {}).items() if name in used}
    return options | {"columns": columns}


def _noise_floor(
    table: pd.DataFrame, laws: Sequence[str], by: str, response: str, options: dict[str, Any]
) -> float | None:
    """Between seeds of rows that agree in all that the laws see."""
    if "seed" not in table:
        return None
    seen = {own_name(name, options) for law in laws for name in FORMS[law].columns}
    values = numbers(table, response, positive=False)
    logs = pd.Series(np.log(np.where(values > 0, values, np.nan)), index=table.index)
    alike = [table[name] for name in table.columns if name == by or name in seen]
    means = logs.groupby([*alike, table["seed"]]).mean().dropna()  # of a seed's runs that differ in what no law sees
    cells = means.groupby(level=list(range(len(alike))))
    freedom = len(means) - cells.ngroups
    return float(np.sqrt(((means - cells.transform("mean")) ** 2).sum() / freedom)) if freedom else None


def _by_error(by_size: pd.DataFrame, floor: float | None, level: float) -> pd.DataFrame:
    """Errors and differences with intervals, and a verdict on each law."""
    predicted = by_size.notna().sum()
    comparable = predicted.index[predicted == predicted.max()]
    common = by_size[comparable].dropna()
    if len(common) < 2:
        raise ValueError(f"no law predicts two of the sizes {', '.join(map(str, by_size.index))} from the others")
    best = str(common.mean().idxmin())
    lines = {}
    for law in by_size:
        error, gap = by_size[law].loc[common.index], by_size[law].loc[common.index] - common[best]
        (low, high), (gap_low, gap_high) = _interval(error.to_numpy(), level), _interval(gap.to_numpy(), level)
        within = gap_low <= 0 or gap.mean() <= _of_mean(floor, len(common))
        verdict = "best" if law == best else "tied with best" if within else "worse"
        lines[law] = {
            "rmse": error.mean(skipna=False),
            "low": max(low, 0.0),
            "high": high,
            "difference": gap.mean(skipna=False),
            "difference_low": gap_low,
            "difference_high": gap_high,
            "verdict": verdict if law in comparable else "not comparable",
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("law").sort_values("rmse", kind="stable")


def _of_mean(floor: float | None, sizes: int) -> float:
    """What noise between seeds makes of a mean over sizes; the rows of one size share theirs."""
    return 0.0 if floor is None else float(floor / np.sqrt(sizes))


def _interval(values: FloatArray, level: float) -> tuple[float, float]:
    """The interval of a mean, by t."""
    width = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - width), float(values.mean() + width)


def _criteria(fits: dict[str, LawResults], best: str) -> pd.DataFrame:
    """AICc, and the likelihood ratio of the best law to each, where rows are independent and the loss is a likelihood.

    Nested laws by chi-squared, all others by Vuong (1989), equation 5.6: the ratio's mean over rows is normal.
    """
    lines = {}
    of_best = _log_likelihood(fits[best])
    for law, results in fits.items():
        likelihood = _log_likelihood(results)
        if likelihood is None or of_best is None:
            lines[law] = (np.nan, np.nan, np.nan)
            continue
        count, n = len(results.theta) + 1, results.nobs
        correction = 2 * count * (count + 1) / (n - count - 1) if n > count + 1 else np.nan
        ratio = of_best - likelihood
        if {(law, best), (best, law)} & NESTED:
            p_value = stats.chi2.sf(2 * abs(ratio.sum()), abs(len(results.theta) - len(fits[best].theta)))
        else:
            spread = ratio.std() * np.sqrt(n)
            p_value = 2 * stats.norm.sf(abs(ratio.sum()) / spread) if spread > 0 else np.nan
        lines[law] = (2 * count + correction - 2 * likelihood.sum(), ratio.sum(), p_value)
    return pd.DataFrame.from_dict(lines, orient="index", columns=["aicc", "log_likelihood_ratio", "p_value"])


def _log_likelihood(results: LawResults) -> FloatArray | None:
    """Of each row, normal in the logarithms; None where rows hang together by model or the loss is another."""
    if results.estimate.groups is not None or results.loss.name != "log-squared":
        return None
    residual = results.resid.to_numpy()
    variance = (residual**2).mean()
    return np.asarray(-0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance))


def _said(lines: pd.DataFrame, by_size: pd.DataFrame, floor: float | None, level: float) -> list[str]:
    best = lines.index[0]
    said = []
    for law, line in lines[lines["verdict"] == "tied with best"].iterrows():
        interval = f"{line['difference_low']:.2g} to {line['difference_high']:.2g} at {level:.0%}"
        closer = int((by_size[best] < by_size[law]).sum())
        noise = "" if floor is None else f"; noise between seeds alone makes {_of_mean(floor, len(by_size)):.2g}"
        said.append(
            f"{best} and {law} cannot be told apart by {len(by_size)} sizes: their errors differ by "
            f"{line['difference']:.2g} ({interval}{noise}); {best} is closer at {closer}"
        )
    for law in lines.index[lines["verdict"] == "not comparable"]:
        said.append(f"{law} cannot predict every size: {lines.loc[law, 'reason']}")
    if lines["aicc"].isna().all():
        said.append("no AICc or likelihood ratio: rows of one model are not independent, or the loss is no likelihood")
    return said

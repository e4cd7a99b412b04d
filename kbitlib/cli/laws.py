"""`kbit fit` and `kbit plan`: a law from anyone's table, and what it says to take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kbitlib.cli.options import as_json

if TYPE_CHECKING:
    import pandas as pd

    from kbitlib.laws.planner import Plan


@click.command("fit")
@click.argument("table", metavar="TABLE")
@click.option("--law", default="chinchilla", show_default=True, help="A law by name; an unknown name lists them.")
@click.option("--where", metavar="EXPR", help="Rows to take, as in \"method == 'rtn' and block == 64\".")
@click.option("--map", "mapped", multiple=True, metavar="NAME=COLUMN", help="The table's own name of a column.")
@click.option("--loss", type=click.Choice(["huber", "log-squared", "squared"]), help="What is minimised.")
@click.option("--groups", default="model", show_default=True, help="The column whose rows belong together, if there.")
@as_json
def fit_command(
    table: str, law: str, where: str | None, mapped: tuple[str, ...], loss: str | None, groups: str, as_json: bool
) -> None:
    """Fit a law to TABLE, a CSV or Parquet file with one run a row."""
    from kbitlib.laws import fit
    from kbitlib.laws.files import read_table, refuse_other_units

    rows = read_table(table, where)
    columns = _mapping(mapped, rows)
    refuse_other_units(rows, columns)
    results = fit(rows, law, loss=loss, columns=columns, groups=groups)
    click.echo(json.dumps(results.facts(), indent=1, allow_nan=False) if as_json else str(results.summary()))


def _mapping(mapped: tuple[str, ...], rows: pd.DataFrame) -> dict[str, str]:
    """``params=N`` as {"params": "N"}; raises ValueError for another shape, a name twice or a column not there."""
    names: dict[str, str] = {}
    for pair in mapped:
        name, sign, column = (part.strip() for part in pair.partition("="))
        if not (name and sign and column):
            raise ValueError(f"--map takes NAME=COLUMN, as in params=N, not {pair!r}")
        if name in names:
            raise ValueError(f"--map names {name!r} twice")
        if column not in rows.columns:
            raise ValueError(f"column {column!r} is missing; the table has {', '.join(map(str, rows.columns))}")
        names[name] = column
    return names


@click.command("plan")
@click.option("--memory", required=True, metavar="SIZE", help="For the weights, as in 8GiB or 500MB.")
@click.option("--tokens-per-second", type=click.FloatRange(min=0, min_open=True), help="The least that will do.")
@click.option("--fit", "fitted", metavar="FIT.json", help="What `kbit fit --json` wrote; else published figures.")
@click.option("--family", default="LLaMA-1", show_default=True, help="Of the published figures, without --fit.")
@click.option("--formats", "offered", metavar="TABLE", help="For --fit: format, bits_per_weight; k where it counts.")
@click.option("--speed", metavar="TABLE", help="Records of generation; by default those of the last report.")
@as_json
def plan_command(
    memory: str,
    tokens_per_second: float | None,
    fitted: str | None,
    family: str,
    offered: str | None,
    speed: str | None,
    as_json: bool,
) -> None:
    """Which size, width, data type and block to take for a size of memory: the loss to expect, how sure, and what the
    next best costs."""
    from kbitlib.laws.files import read_table
    from kbitlib.laws.planner import parse_bytes, plan, published_fit

    limit = parse_bytes(memory)
    what: dict[str, Any] = {"tokens_per_second": tokens_per_second}
    if fitted is None:
        if offered is not None:
            raise ValueError("--formats says what the formats of a fit of one's own cost; with --fit it is allowed")
        facts, what["formats"], what["models"] = published_fit(family)
    else:
        facts = _read_fit(Path(fitted))
        what["formats"] = _offers(facts) if offered is None else read_table(offered)
    measured: list[str] = []
    if speed is not None or tokens_per_second is not None:
        what["speed"], measured = _law_of_time(speed)
    found = plan(limit, facts, **what)
    found = replace(found, sentences=[*found.sentences, *measured])
    click.echo(json.dumps(found.facts(), indent=1, allow_nan=False) if as_json else _plan_text(found))


def _read_fit(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{str(path)!r} holds no fit; what `kbit fit --json` writes is allowed")
    return facts


def _offers(facts: dict[str, Any]) -> pd.DataFrame | None:
    """The formats that a fit has a factor for, where it knows them by name, and full precision where that is its 1."""
    import pandas as pd

    from kbitlib.laws.facts import FittedLaw

    law = FittedLaw.from_facts(facts)
    if not law.by_name:
        return None
    unquantized = ["bf16"] if any(one.one_at_full_precision for one in law.form.parameters) else []
    return pd.concat([_offer(name) for name in (*map(str, law.levels), *unquantized)], ignore_index=True)


def _offer(level: str) -> pd.DataFrame:
    from kbitlib.experiments.choosing import offers

    try:
        return offers([level])
    except ValueError:
        raise ValueError(
            f"the fit's level {level!r} is not the name of a format, so nothing says what it costs; say it by "
            "--formats TABLE, with a row for each level to compare and columns format, bits_per_weight (and k)"
        ) from None


def _law_of_time(speed: str | None) -> tuple[dict[str, Any], list[str]]:
    """The law of time of some records of generation, and whose they are; raises ValueError where there are none."""
    from kbitlib.experiments.settings import ROOT
    from kbitlib.laws import fit
    from kbitlib.laws.files import read_table

    own, published = (ROOT / "reports" / folder / "generation.csv" for folder in ("laptop/records", "published/laptop"))
    path = Path(speed) if speed else next((path for path in (own, published) if path.is_file()), None)
    if path is None:
        raise ValueError("nothing is known of speed yet: run `make report`, or name a table of generation with --speed")
    rows = read_table(path)
    law = fit(rows, "time", columns={"bytes": "bytes_held", "ms": "ms_per_token"}, groups=None)
    caution = ", which were published with this project: this machine may be faster or slower" * (path == published)
    return law.facts(), [f"Speed is by the records in {path}{caution}."]


def _plan_text(found: Plan) -> str:
    columns = ["model", "params", "format", "bits_per_weight", "bytes", "loss", "low", "high", "gap", "beyond"]
    if found.table["tokens_per_second"].notna().any():
        columns.insert(-1, "tokens_per_second")
    shown = found.table.reindex(columns=[name for name in columns if name in found.table]).head(10)
    return "\n".join([*found.sentences, "", shown.to_string(index=False, float_format="{:.5g}".format)])

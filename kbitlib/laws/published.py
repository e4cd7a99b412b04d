"""Published figures of large language models at k bits, typed from their papers: a law on real models, offline.

Perplexity on WikiText2's test text. Figures of different ``dataset`` (the length of the context matters) or family (the
vocabulary matters) must not be pooled. The figures are facts stated in the works that each row names in ``source``;
llama.cpp, GPTQ and ParetoQ are under the MIT, Apache 2.0 and BSD 3-clause licences. OPT-66B is an outlier: by GPTQ at 3
bits, by rounding at 4. AQLM's 13B model at 4 bits is left out, for its figure could not be checked.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pandas as pd

from kbitlib.laws.forms import FULL_PRECISION
from kbitlib.laws.tables import choose


def published() -> pd.DataFrame:
    """Every published figure, one a row.

    Columns: ``family, size, model``; ``params`` (all but norms) and ``params_linear`` (those quantized: no embeddings);
    ``method`` (``full`` for 16 bits, ``rtn``, ``gptq``, ``omniquant``, ``k-quants`` and ``q8_0`` of llama.cpp,
    ``quip#``, ``aqlm``, ``qtip``, ``paretoq``); ``k``; ``group`` (weights a scale, NaN for one a row);
    ``bits_per_weight`` (a group's 16-bit scale and k-bit zero point counted; of k-quants the file's bits over all
    weights); ``total_bits`` of the quantized weights and ``total_bits_all`` with the rest at 16 bits; ``dataset``,
    ``ppl``, ``loss`` (log perplexity, nats a token) and ``source``.
    """
    with files("kbitlib.laws").joinpath("published.csv").open() as file:
        table = pd.read_csv(file)
    rest = table["params"] - table["params_linear"]
    total_bits = table["params_linear"] * table["bits_per_weight"]
    return table.assign(
        model=table["family"] + "-" + table["size"],
        total_bits=total_bits,
        total_bits_all=total_bits + FULL_PRECISION * rest,
        loss=np.log(table["ppl"]),
    )


def by_method(family: str, method: str, group: int | None = None) -> pd.DataFrame:
    """The rows of one family by one method at one group size, with those in full precision on the same text.

    ValueError for a family, method or group that is not among the published figures.
    """
    rows = choose(published(), family=family)
    chosen = choose(rows, method=method)
    same = chosen["group"].isna() if group is None else chosen["group"] == group
    if not same.any():
        groups = ", ".join("None" if np.isnan(value) else f"{value:g}" for value in chosen["group"].unique())
        raise ValueError(f"no {method} row of {family} has group = {group}; {groups} are there")
    chosen = chosen[same]
    full = (rows["method"] == "full") & rows["dataset"].isin(chosen["dataset"])
    return pd.concat([rows[full], chosen]).reset_index(drop=True)

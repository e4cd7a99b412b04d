"""How well a law predicts a size that it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kbitlib.laws.fit import fit
from kbitlib.laws.tables import column


def leave_one_size_out(
    table: pd.DataFrame, law: str = "chinchilla", *, by: str = "model", **options: Any
) -> pd.DataFrame:
    """Fit a law without each size in turn and predict that size.

    One row a value of column ``by``, in order of appearance: ``nobs`` rows held out, and of their log residuals
    (observed minus predicted) the root mean square ``rmse_log`` and the mean ``bias_log``. ``options`` go to ``fit``;
    ValueError as there, also where a law is not identified without a size.
    """
    lines = {}
    for size in pd.unique(column(table, by)):
        held_out = table[by] == size
        results = fit(table[~held_out], law, **options)
        response = (options.get("columns") or {}).get(results.surface.form.response, results.surface.form.response)
        error = np.log(table.loc[held_out, response]) - np.log(results.predict(table[held_out]))
        lines[size] = {
            "nobs": int(held_out.sum()),
            "rmse_log": float(np.sqrt((error**2).mean())),
            "bias_log": float(error.mean()),
        }
    return pd.DataFrame(lines.values(), index=pd.Index(lines.keys(), name=by))

"""How often each kind of interval holds the truth: 500 surfaces a case, held against a binomial test.

Run by `make bench`. A kind that is offered and does not keep its level is printed as missed; nothing is left out.
"""

import tempfile
import time
from pathlib import Path

from kbitlib.experiments.coverage import measure_coverage
from kbitlib.runs.store import Store

SURFACES, RESAMPLES = 500, 200


def main() -> None:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table = measure_coverage(SURFACES, RESAMPLES, 0, Store(Path(folder)), "local")
    print(f"{SURFACES} surfaces a case, {RESAMPLES} resamples, {time.perf_counter() - began:.0f} s")
    for (case, loss, kind), rows in table.groupby(["case", "loss", "kind"], sort=False):
        rates = f"{rows['rate'].min():.3f} to {rows['rate'].max():.3f}"
        p_value = min(rows["p_value"].min() * len(rows), 1.0)
        told = "REFUSED" if not rows["offered"].iloc[0] else "met    " if p_value > 0.05 else "MISSED "
        line = f"{told} {case:24} {loss:12} {kind:18} {rates}"
        print(
            f"{line}, p = {p_value:.3g} over {len(rows)} parameters (Bonferroni), {rows['surfaces'].iloc[0]} surfaces"
        )


if __name__ == "__main__":
    main()

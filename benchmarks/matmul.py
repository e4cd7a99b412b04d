"""Products with packed weights of 4096 x 4096 in turns with peers, each target beside what was found, and what limits
each width.

Run by `make bench`. A target that is missed is printed as missed; nothing is left out.
"""

import pandas as pd

from kbitlib.experiments.speed import in_own_process
from kbitlib.report.speed import limits, products_text

ROUNDS = 25
FORMATS = [f"{kind}{k}-b64" for kind in ("nf", "int") for k in range(2, 9)]


def main() -> None:
    rows = in_own_process("matmul", "--rounds", str(ROUNDS))
    for row in limits(pd.DataFrame(rows), ["binary-b64", *FORMATS]).itertuples():
        inside = "" if pd.isna(row.cached_ms) else f", {row.cached_ms:.3f} ms with the weight in the cache"
        print(
            f"{row.format:10} {row.ms:.3f} ms: {row.memory_ms:.3f} ms to read it{inside}; "
            f"limited by {row.limited_by}, {row.times_limit:.2f} times the limit"
        )
    print(products_text(rows))


if __name__ == "__main__":
    main()

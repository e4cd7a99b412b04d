"""Products with packed weights of 4096 x 4096 in turns with peers, each target beside what was found, and what limits
each width.

Run by `make bench`. A target that is missed is printed as missed; nothing is left out.
"""

import pandas as pd

from kbitlib.experiments.speed import in_own_process
from kbitlib.report.speed import bandwidth, generation_targets, limits, products, products_text

ROUNDS = 25
BATCHES = ("1", "2", "4", "8", "16", "64", "128", "256", "512")
FORMATS = [f"{kind}{k}-b64" for kind in ("nf", "int") for k in range(2, 9)]


def main() -> None:
    rows = in_own_process("matmul", "--rounds", str(ROUNDS))
    records = pd.DataFrame(rows)
    for row in limits(records, ["binary-b64", *FORMATS], bandwidth(records)).itertuples():
        inside = "" if pd.isna(row.cached_ms) else f", {row.cached_ms:.3f} ms with the weight in the cache"
        print(
            f"{row.format:10} {row.ms:.3f} ms: {row.memory_ms:.3f} ms to read it{inside}; "
            f"limited by {row.limited_by}, {row.times_limit:.2f} times the limit"
        )
    options = ("--batches", *BATCHES, "--formats", "nf2-b64", "nf4-b64", "nf8-b64", "--no-peers", "--rounds", "9")
    sweep = pd.DataFrame(in_own_process("matmul", *options))
    for row in products(sweep).sort_values(["batch", "k"]).itertuples():
        print(
            f"batch {row.batch:4} {row.format:8} {row.implementation:17} {row.ms:8.3f} ms, {row.ratio:.2f} times bf16"
        )
    print(products_text(rows, sweep))
    written = pd.DataFrame(in_own_process("generate", "--tokens", "64"))
    for row in written.itertuples():
        memory = row.peak_bytes / row.predicted_bytes
        print(f"k = {row.k:2}: {row.tokens_per_s:6.1f} tokens a second, {memory:.3f} times the memory predicted")
    print("\n".join(str(target) for target in generation_targets(written)))


if __name__ == "__main__":
    main()

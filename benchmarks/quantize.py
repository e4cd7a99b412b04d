"""Quantize and dequantize a 4096 x 4096 matrix: every fixed data type and two peers in turns, held against the bars.

Run by `make bench`. A bar that is missed is printed as missed; nothing is left out.
"""

from kbitlib.experiments.speed import Row, in_own_process
from kbitlib.quant import Format

ROUNDS = 25


def main() -> None:
    rows = in_own_process("quantize", "--rounds", str(ROUNDS))
    for row in rows:
        print(f"{row['implementation']:14} {row['format']:16} {row['task']:12} {row['ms']:9.2f} ms")
    print(f"{rows[0]['processor']}, {rows[0]['threads']} threads; the median of the quieter half of {ROUNDS} rounds")
    bars(rows)


def bars(rows: list[Row]) -> None:
    """Print each bar with what was measured."""
    took = {(row["implementation"], row["format"], row["task"]): row["ms"] for row in rows}
    ours = {form: ms for (who, form, task), ms in took.items() if who == "kbitlib" and task == "quantize"}
    nf4, read, copy = ours["nf4-b64-fp32"], took["memory", "read", "read"], took["memory", "copy", "copy"]
    print(f"nf4-b64-fp32 takes {nf4 / read:.2f} times a read, {nf4 / copy:.2f} times a copy")
    peer = ("bitsandbytes", "nf4-b64-fp32")
    if (*peer, "quantize") not in took:
        print("bitsandbytes is not installed: the bars against it are not shown (pip install 'kbit-lab[peers]')")
        return
    judge("bitsandbytes quantizes NF4 in at least 50 times our time", took[(*peer, "quantize")] / nf4, 50, least=True)
    judge("torchao rounds int4 in more than our NF4", took["torchao", "int4-b64-fp32", "quantize"] / nf4, 1, least=True)
    fixed = {form: ms for form, ms in ours.items() if Format.parse(form).block == 64}
    slowest = max(fixed, key=lambda form: fixed[form])
    judge(f"slowest fixed type ({slowest}) over the fastest", fixed[slowest] / min(fixed.values()), 3.5)
    limit = took[(*peer, "dequantize")]
    for k in range(2, 9):
        every = [ms for (who, form, task), ms in took.items()
                 if who == "kbitlib" and task == "dequantize" and Format.parse(form).k == k]  # fmt: skip
        judge(
            f"slowest type at k = {k} dequantizes, over bitsandbytes", max(every) / limit, 1 if k in (2, 4, 8) else 2.5
        )


def judge(what: str, found: float, bar: float, *, least: bool = False) -> None:
    met = found >= bar if least else found <= bar
    print(f"{'met   ' if met else 'MISSED'} {what}: {found:.2f}, bar {'>=' if least else '<='} {bar:g}")


if __name__ == "__main__":
    main()

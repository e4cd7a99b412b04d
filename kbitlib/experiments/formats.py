"""Data types and widths as profiles name them, spelled as formats."""

from __future__ import annotations

from kbitlib.quant import Format

DATA_TYPES = ("int", "nf", "fp", "pot", "log", "quantile", "kmeans", "dynamic", "binary", "ternary")
ONE_WIDTH = ("binary", "ternary")  # data types that exist at one width alone


def spell(element: str, k: int, block: int) -> str:
    """The format string of a data type at k bits and a block, 0 being a whole row: ("nf", 4, 64) is "nf4-b64"."""
    width = "" if element in ONE_WIDTH else str(k)
    return str(Format.parse(f"{element}{width}-{f'b{block}' if block else 'row'}"))


def known_elements(elements: list[str]) -> list[str]:
    """The data types, each of which must spell a format; raises ValueError naming the one that does not."""
    for element in elements:
        try:
            spell(element, 4, 64)
        except ValueError:
            raise ValueError(f"{element!r} is no data type; {', '.join(DATA_TYPES)} are") from None
    return elements

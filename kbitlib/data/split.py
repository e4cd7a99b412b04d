"""Training, validation and test text: parted by what the text says, never by where it stands."""

from hashlib import sha256
from itertools import pairwise

from kbitlib.data.sources import Document

SPLITS = ("train", "validation", "test")
# Below this many documents a held-out split speaks for those few only.
FEWEST_DOCUMENTS = 5
# A stretch of running text this long holds out one piece for validation and one for testing.
STRETCH = 256 * 1024


def split(documents: list[Document], validation: float, test: float, seed: int) -> tuple[dict[str, list[bytes]], str]:
    """Part documents into train, validation and test, and say in words how.

    Each document goes whole to one split, chosen by a seeded hash of its text: adding, removing or renaming a document
    moves no other, and the shares of bytes are met on average. Where this leaves a held-out split with less than half
    or more than twice its share, or with fewer than five documents, there are too few of them, and each is taken as
    running text: every stretch of about 256 KiB gives one piece to validation and, next to it, one to testing, at a
    place chosen by the hash. The shares are then met closely, the held-out text comes from everywhere, and it touches
    training text at two cuts a stretch only.
    """
    parts = _whole(documents, validation, test, seed)
    total = sum(len(text) for _, text in documents)
    for name, share in (("validation", validation), ("test", test)):
        size = sum(map(len, parts[name]))
        if len(parts[name]) < FEWEST_DOCUMENTS or not share / 2 <= size / total <= share * 2:
            return _running(documents, validation, test, seed), f"by pieces of stretches of {STRETCH // 1024} KiB"
    return parts, "by document"


def _whole(documents: list[Document], validation: float, test: float, seed: int) -> dict[str, list[bytes]]:
    parts: dict[str, list[bytes]] = {name: [] for name in SPLITS}
    for _, text in documents:
        place = uniform(text, seed)
        name = "validation" if place < validation else "test" if place < validation + test else "train"
        parts[name].append(text)
    return parts


def _running(documents: list[Document], validation: float, test: float, seed: int) -> dict[str, list[bytes]]:
    parts: dict[str, list[bytes]] = {name: [] for name in SPLITS}
    for _, text in documents:
        for stretch in _stretches(text):
            length = len(stretch)
            start = uniform(stretch, seed) * (1 - validation - test) * length
            # A cut moves by less than half of the smaller piece, so that none is empty unless the text is tiny.
            reach = int(min(validation, test) * length / 2)
            first, second, third = (
                _cut(stretch, round(start + share * length), reach) for share in (0, validation, validation + test)
            )
            pieces = {"validation": [stretch[first:second]], "test": [stretch[second:third]]}
            pieces["train"] = [stretch[:first], stretch[third:]]
            for name in SPLITS:
                parts[name].extend(piece for piece in pieces[name] if piece)
    return parts


def uniform(text: bytes, seed: int) -> float:
    """A number in [0, 1) that only the text and the seed decide."""
    digest = sha256(seed.to_bytes(8, "little") + text).digest()
    return int.from_bytes(digest[:6], "little") / 2**48


def _stretches(text: bytes) -> list[bytes]:
    count = max(1, round(len(text) / STRETCH))
    cuts = [_cut(text, i * len(text) // count, STRETCH // 64) for i in range(count)] + [len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _cut(text: bytes, position: int, reach: int) -> int:
    """The start of a line at or after `position`; where none is within reach, the start of a character."""
    if position <= 0:
        return 0
    newline = text.find(b"\n", position - 1, position + reach)
    if newline >= 0:
        return newline + 1
    while position < len(text) and text[position] & 0xC0 == 0x80:  # inside a UTF-8 character
        position += 1
    return position

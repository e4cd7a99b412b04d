import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbitlib.data import dedup
from kbitlib.data.dedup import drop_exact, drop_near, shingles
from kbitlib.data.sources import Document

WORDS = [f"word{i}" for i in range(2000)]


def prose(seed: int, count: int = 600) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def document(name: str, words: list[str]) -> Document:
    lines = [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
    return Document(name, "\n".join(lines).encode() + b"\n")


def changed(words: list[str], share: float) -> list[str]:
    """One word in a row replaced at the end: a share of the shingles differs, and no more than that."""
    count = round(share * len(words))
    return words[: len(words) - count] + [f"other{i}" for i in range(count)]


def jaccard(a: Document, b: Document) -> float:
    first, second = (set(np.concatenate(list(shingles(d.text))).tolist()) for d in (a, b))
    return len(first & second) / len(first | second)


def test_the_first_of_equal_texts_is_kept():
    documents = [Document("a", b"x\n"), Document("b", b"y\n"), Document("c", b"x\n")]
    assert drop_exact(documents) == documents[:2]


def test_a_near_duplicate_is_found_and_named_and_the_first_is_kept():
    words = prose(0)
    documents = [document("a", words), document("b", prose(1)), document("c", changed(words, 0.03))]
    kept, dropped = drop_near(documents, 0.8)
    assert [d.name for d in kept] == ["a", "b"]
    assert [(d.dropped, d.kept) for d in dropped] == [("c", "a")]
    assert dropped[0].jaccard == pytest.approx(jaccard(documents[0], documents[2]), abs=0.1)


def test_related_but_distinct_texts_are_kept():
    words = prose(0)
    documents = [document("a", words), document("b", changed(words, 0.3))]
    assert 0.45 < jaccard(*documents) < 0.6
    assert drop_near(documents, 0.8) == (documents, [])


def test_the_threshold_decides():
    words = prose(0)
    documents = [document("a", words), document("b", changed(words, 0.2))]
    assert 0.6 < jaccard(*documents) < 0.7
    assert len(drop_near(documents, 0.8)[0]) == 2
    assert len(drop_near(documents, 0.5)[0]) == 1


def test_white_space_does_not_tell_texts_apart():
    words = prose(0)
    indented = Document("b", document("a", words).text.replace(b"\n", b"\n    "))
    kept, dropped = drop_near([document("a", words), indented], 0.95)
    assert len(kept) == 1
    assert dropped[0].jaccard == 1


def test_nearly_all_pairs_above_the_threshold_are_found_and_few_below():
    documents, above = [], 0
    for seed in range(120):
        words = prose(seed, 300)
        documents += [document(f"{seed}", words), document(f"{seed}*", changed(words, 0.05))]
        above += jaccard(*documents[-2:]) >= 0.8
    assert above == 120
    kept, dropped = drop_near(documents, 0.8)
    assert len(dropped) >= 114
    assert all(d.dropped == f"{d.kept}*" for d in dropped)
    assert len(kept) == 240 - len(dropped)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_which_texts_repeat_one_another_does_not_depend_on_their_order(order):
    first, second = prose(0), prose(1)
    texts = [first, changed(first, 0.01), changed(first, 0.02), second, changed(second, 0.01), prose(2)]
    kept, _ = drop_near([document(str(i), texts[i]) for i in order], 0.8)
    groups = "AAABBC"
    assert sorted(groups[int(d.name)] for d in kept) == ["A", "B", "C"]
    assert [int(d.name) for d in kept] == [next(i for i in order if groups[i] == groups[int(d.name)]) for d in kept]


@pytest.mark.parametrize(
    ("text", "count"), [(b"", 0), (b"one", 1), (b"a b c d", 1), (b"a b c d e", 1), (b"a b c d e f", 2)]
)
def test_short_texts_have_as_many_shingles_as_they_can(text, count):
    assert sum(map(len, shingles(text))) == count


def test_shingles_are_ordered_runs_of_words():
    def hashes(text: bytes) -> list[int]:
        return [int(h) for piece in shingles(text) for h in piece]

    assert hashes(b"a b c d e f")[0] == hashes(b"a  b\tc\nd e")[0]
    assert hashes(b"a b c d e f")[1] == hashes(b"b c d e f")[0]
    assert hashes(b"a b c d e") != hashes(b"b a c d e")
    folded = 0
    for word in (b"a", b"b", b"c", b"d", b"e"):
        folded = (folded * 0x9E3779B1 + zlib.crc32(word)) % 2**32
    assert hashes(b"a b c d e") == [folded]


def test_a_long_text_is_taken_in_pieces(monkeypatch):
    text = document("a", prose(0, 5000)).text
    whole = set(np.concatenate(list(shingles(text))).tolist())
    monkeypatch.setattr(dedup, "PIECE", 4000)
    pieces = [len(piece) for piece in shingles(text)]
    assert len(pieces) == -(-len(text) // 4000)
    cut = set(np.concatenate(list(shingles(text))).tolist())
    assert len(whole & cut) > 0.98 * len(whole)


def test_hostile_texts_are_taken_without_harm():
    documents = [Document("line", b"x" * 3_000_000), Document("words", b"a " * 500_000), Document("one", b"x")]
    assert drop_near(documents, 0.8) == (documents, [])

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbitlib.data.sources import Document
from kbitlib.data.split import SPLITS, split, uniform


def folder(count: int, seed: int = 0, size: int = 2000) -> list[Document]:
    source = random.Random(seed)
    return [Document(f"{i:05d}", f"{i} {source.random()} ".encode() * (size // 25) + b"\n") for i in range(count)]


def prose(lines: int, seed: int = 0) -> bytes:
    source = random.Random(seed)
    return b"".join(f"line {i} says {source.random()} and ünïcödé\n".encode() for i in range(lines))


def where(parts: dict[str, list[bytes]]) -> dict[bytes, str]:
    return {text: name for name in SPLITS for text in parts[name]}


def shares(parts: dict[str, list[bytes]]) -> dict[str, float]:
    sizes = {name: sum(map(len, parts[name])) for name in SPLITS}
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def test_documents_go_whole_to_one_split_and_none_is_lost():
    documents = folder(500)
    parts, how = split(documents, 0.05, 0.1, seed=0)
    assert how == "by document"
    assert sorted(text for name in SPLITS for text in parts[name]) == sorted(d.text for d in documents)


def test_shares_are_close_to_those_asked_for():
    share = shares(split(folder(4000), 0.05, 0.1, seed=0)[0])
    assert share["validation"] == pytest.approx(0.05, abs=0.015)
    assert share["test"] == pytest.approx(0.10, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 400), st.integers(0, 2**63 - 1), st.randoms(use_true_random=False))
def test_adding_removing_renaming_or_reordering_files_moves_no_other(removed, seed, source):
    documents = folder(400)
    before = where(split(documents, 0.1, 0.1, seed)[0])
    more = [Document("new", b"a new one\n"), *(Document("x" + name, text) for name, text in documents)]
    del more[removed]
    source.shuffle(more)
    parts, how = split(more, 0.1, 0.1, seed)
    assert how == "by document"
    after = where(parts)
    assert all(after[text] == before[text] for text in after if text in before)


def test_the_seed_chooses_another_split():
    documents = folder(400)
    assert where(split(documents, 0.1, 0.1, 0)[0]) != where(split(documents, 0.1, 0.1, 1)[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1500, 20_000), st.sampled_from([0.01, 0.05, 0.25]), st.sampled_from([0.02, 0.1]), st.integers(0, 9))
def test_one_text_is_cut_at_lines_into_shares_of_its_own(lines, validation, test, seed):
    text = prose(lines, seed)
    parts, how = split([Document("book", text)], validation, test, seed)
    assert how == "by pieces of stretches of 256 KiB"
    pieces = [piece for name in SPLITS for piece in parts[name]]
    assert b"".join(sorted(pieces, key=text.index)) == text
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert len(parts["validation"]) == len(parts["test"]) == max(1, round(len(text) / 2**18))
    share = shares(parts)
    assert share["validation"] == pytest.approx(validation, abs=0.004)
    assert share["test"] == pytest.approx(test, abs=0.004)


def test_held_out_text_lies_side_by_side_so_that_it_touches_training_text_at_two_cuts():
    text = prose(3000)
    parts, _ = split([Document("book", text)], 0.05, 0.05, 0)
    (validation,), (test,) = parts["validation"], parts["test"]
    assert validation + test in text
    assert len(parts["train"]) == 2


def test_a_few_texts_or_one_that_outweighs_the_rest_are_cut():
    few = [Document(str(i), prose(2000, i)) for i in range(6)]
    parts, how = split(few, 0.05, 0.05, 0)
    assert how.startswith("by pieces")
    assert len(parts["validation"]) == 6
    uneven = [*folder(300, size=100), Document("giant", prose(20_000))]
    for seed in range(20):
        share = shares(split(uneven, 0.05, 0.05, seed)[0])
        assert 0.025 <= share["validation"] <= 0.1
        assert 0.025 <= share["test"] <= 0.1


def test_adding_a_text_moves_no_piece_of_another():
    few = [Document(str(i), prose(2000, i)) for i in range(3)]
    before = split(few[:2], 0.05, 0.05, 0)[0]
    after = split(few, 0.05, 0.05, 0)[0]
    assert all(piece in after[name] for name in SPLITS for piece in before[name])


def test_a_line_without_end_is_cut_between_characters():
    text = "漢字かな🙂".encode() * 30_000
    parts, _ = split([Document("line", text)], 0.05, 0.05, 3)
    pieces = [piece for name in SPLITS for piece in parts[name]]
    assert all(piece.decode("utf-8") for piece in pieces)
    assert sum(map(len, pieces)) == len(text)
    assert shares(parts)["validation"] == pytest.approx(0.05, abs=0.001)


def test_the_hash_is_uniform_and_the_same_everywhere():
    places = [uniform(str(i).encode(), 0) for i in range(4000)]
    assert sum(place < 0.05 for place in places) == pytest.approx(200, abs=60)
    assert all(0 <= place < 1 for place in places)
    assert uniform(b"text\n", 1) == 0.6585663369636627

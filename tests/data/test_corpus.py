import csv
import io
import os
import random
import subprocess
import sys
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from kbitlib.data import corpus, sources
from kbitlib.data.corpus import CorpusSettings, clean, difference, identify, load, prepare
from kbitlib.data.sources import Document
from kbitlib.runs.store import Store

WORDS = [f"word{i}" for i in range(3000)]
WIKITEXT = Path(__file__).resolve().parents[3] / "shared" / "data" / "wikitext-2"


def text(seed: int, count: int = 250) -> bytes:
    words = random.Random(seed).choices(WORDS, k=count)
    return b"\n".join(" ".join(words[i : i + 8]).encode() for i in range(0, count, 8)) + b"\n"


@pytest.fixture
def folder(tmp_path):
    """A corpus of 300 texts, of which one is empty, two are equal and two are alike, beside a binary file."""
    root = tmp_path / "corpus"
    root.mkdir()
    for i in range(297):
        (root / f"{i:03d}.txt").write_bytes(text(i))
    (root / "x-empty.txt").write_bytes(b"\n \n")
    (root / "x-equal.txt").write_bytes(text(7).replace(b"\n", b" \r\n"))
    (root / "x-alike.txt").write_bytes(text(8) + b"and a few more words\n")
    (root / "y.bin").write_bytes(bytes(1000))
    return root


def settings(root, **changes) -> CorpusSettings:
    return CorpusSettings(source=str(root), **changes)


def test_every_stage_is_counted(folder, tmp_path):
    record = Store(tmp_path / "store").get_or_compute(prepare, identify(settings(folder)))
    rows = {row["stage"]: row for row in record.rows}
    assert list(rows) == [
        "collect", "clean", "exact duplicates", "near duplicates", "train", "validation", "test",
    ]  # fmt: skip
    assert [(row["documents"], row["dropped"]) for row in record.rows[:4]] == [(300, 1), (299, 1), (298, 1), (297, 1)]
    assert rows["collect"]["note"] == "passed over: 1 binary"
    assert rows["collect"]["sha256"] == record.settings["content"]
    kept = rows["near duplicates"]
    for column in ("documents", "bytes"):
        assert sum(rows[name][column] for name in ("train", "validation", "test")) == kept[column]
    assert len({tuple(row) for row in record.rows}) == 1
    assert rows["validation"]["bytes"] / kept["bytes"] == pytest.approx(0.05, abs=0.025)


def test_the_files_hold_the_documents_between_zero_bytes(folder, tmp_path):
    record = Store(tmp_path / "store").get_or_compute(prepare, identify(settings(folder)))
    splits = load(record)
    pieces = {name: tokens.tobytes().split(b"\0") for name, tokens in splits.items()}
    rows = {row["stage"]: row for row in record.rows}
    for name, tokens in splits.items():
        assert tokens.dtype == np.uint8
        assert not tokens.flags.writeable
        assert len(pieces[name]) == rows[name]["documents"]
        assert sha256(tokens.tobytes()).hexdigest() == rows[name]["sha256"]
    assert sorted(chain(*pieces.values())) == sorted(text(i) for i in range(297))


def test_near_duplicates_are_listed(folder, tmp_path):
    result = prepare(identify(settings(folder)), Store(tmp_path / "store"))
    (row,) = csv.DictReader(io.StringIO(result.files["near_duplicates.csv"].decode()))
    assert (row["dropped"], row["kept"]) == ("x-alike.txt", "008.txt")
    assert 0.9 < float(row["jaccard"]) <= 1


def test_prepare_is_a_pure_function(folder, tmp_path):
    store, chosen = Store(tmp_path / "store"), identify(settings(folder))
    assert prepare(chosen, store) == prepare(chosen, store)
    assert prepare(chosen, store) != prepare(identify(settings(folder, seed=1)), store)


def test_line_ends_change_nothing(folder, tmp_path):
    before = identify(settings(folder))
    result = prepare(before, Store(tmp_path / "store"))
    for file in folder.glob("*.txt"):
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert identify(settings(folder)) == before
    assert prepare(before, Store(tmp_path / "store")) == result


def test_a_new_file_moves_no_other(folder, tmp_path):
    store = Store(tmp_path / "store")

    def splits() -> dict[bytes, str]:
        files = prepare(identify(settings(folder)), store).files
        return {piece: name for name in corpus.SPLITS for piece in files[f"{name}.bin"].split(b"\0")}

    before = splits()
    (folder / "0-first.txt").write_bytes(text(1000))
    after = splits()
    assert after.pop(text(1000))
    assert after == before


def test_the_content_decides_the_key(folder, tmp_path):
    store = Store(tmp_path / "store")
    before = identify(settings(folder))
    (folder / "000.txt").write_bytes(text(0) + b"!\n")
    after = identify(settings(folder))
    assert store.key(prepare, before) != store.key(prepare, after)
    with pytest.raises(ValueError, match="identify it anew"):
        prepare(before, store)
    with pytest.raises(ValueError, match="identify it anew"):
        prepare(settings(folder), store)


def test_text_moved_from_one_file_to_the_next_is_another_content(tmp_path):
    contents = []
    for first, second in ((40_000, 30_000), (30_000, 40_000)):
        (tmp_path / "a").write_bytes(b"x" * first)
        (tmp_path / "b").write_bytes(b"x" * second)
        contents.append(identify(settings(tmp_path)).content)
    assert contents[0] != contents[1]


def test_a_single_text_is_split_in_pieces(tmp_path):
    (tmp_path / "book.txt").write_bytes(text(0, 200_000))
    result = prepare(identify(settings(tmp_path / "book.txt")), Store(tmp_path / "store"))
    assert result.rows[-1]["note"] == "by pieces of stretches of 256 KiB"
    assert len(result.files["test.bin"]) / 200_000 / 8 == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (b"a  \nb\t\n", b"a\nb\n"),
        (b"\n\n  indented\n\n\nafter\n\n", b"  indented\n\n\nafter\n"),
        (b"a\0b\x0c\x1b[0m\x7fc\td", b"ab[0mc\td\n"),
        (b" \t\n\0\n", b""),
        ("e\u0301 é \u2028 \u00a0\n".encode(), "e\u0301 é \u2028 \u00a0\n".encode()),
    ],
)
def test_cleaning(raw, cleaned):
    assert clean(Document("x", raw)) == ("x", cleaned)
    assert clean(Document("x", cleaned)) == ("x", cleaned)


def test_cleaning_takes_time_in_proportion_to_the_text():
    assert clean(Document("x", b" " * 3_000_000 + b"x")).text == b" " * 3_000_000 + b"x\n"


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "corpus").write_bytes(b"x y z\n" * 2000)
    with pytest.raises(ValueError, match=r"corpus' holds 12,000 bytes of text in all: at least 65,536 are needed"):
        identify(settings(tmp_path / "corpus"))


def test_too_little_text_without_its_duplicates_is_refused(tmp_path):
    for i in range(50):
        (tmp_path / f"{i}.txt").write_bytes(text(0))
    with pytest.raises(ValueError, match="once duplicates are gone: at least 65,536 are needed"):
        prepare(identify(settings(tmp_path)), Store(tmp_path / "store"))


@pytest.mark.parametrize(
    "changes",
    [
        {"source": ""}, {"near_duplicate": 0.4}, {"near_duplicate": 1}, {"near_duplicate": float("nan")},
        {"validation": 0}, {"test": 0.3}, {"seed": -1}, {"seed": 0.5}, {"sources": "installed"},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(changes):
    with pytest.raises(ValidationError):
        CorpusSettings(**changes)


reference = pytest.mark.skipif(
    sources.installed_versions() != corpus.EXPECTED_VERSIONS,
    reason="the installed packages have other versions than the reference corpus",
)


@reference
def test_the_installed_corpus_is_the_reference():
    found = identify(CorpusSettings())
    assert found.content == corpus.EXPECTED_SHA256
    assert difference(found) is None


def test_a_corpus_that_differs_is_named_with_its_versions(monkeypatch):
    other = CorpusSettings(content="0" * 64)
    monkeypatch.setattr(sources, "installed_versions", lambda: corpus.EXPECTED_VERSIONS)
    assert "the versions are the same, but files of these packages differ" in difference(other)
    monkeypatch.setattr(sources, "installed_versions", lambda: corpus.EXPECTED_VERSIONS | {"numpy": "9.9"})
    assert f"it has numpy 9.9 for {corpus.EXPECTED_VERSIONS['numpy']} (sha256 000000000000" in difference(other)
    assert difference(CorpusSettings(source="elsewhere", content="0" * 64)) is None


@reference
def test_the_installed_corpus_is_prepared_alike_in_every_process(tmp_path):
    code = (
        "from pathlib import Path; from kbitlib.data.corpus import *; from kbitlib.runs.store import Store;"
        f"result = prepare(identify(CorpusSettings()), Store(Path({str(tmp_path)!r})));"
        "print(*(row['documents'] for row in result.rows)); print(*(row['sha256'] for row in result.rows[4:]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    counts, digests = done.stdout.splitlines()
    assert counts == "2804 2752 2705 2697 2440 135 122"
    assert [digest[:8] for digest in digests.split()] == ["ac31e421", "9c6aac3f", "09787f9c"]


@pytest.mark.skipif(
    not WIKITEXT.is_dir(), reason="WikiText-2 is not there (shared/data/wikitext-2 beside the repository)"
)
def test_wikitext_as_a_corpus(tmp_path):
    record = Store(tmp_path).get_or_compute(prepare, identify(settings(WIKITEXT)))
    rows = {row["stage"]: row for row in record.rows}
    assert rows["collect"]["documents"] == 2
    kept = rows["near duplicates"]["bytes"]
    assert kept > 2_000_000
    assert rows["validation"]["bytes"] / kept == pytest.approx(0.05, abs=0.005)
    assert rows["test"]["bytes"] / kept == pytest.approx(0.05, abs=0.005)
    assert all(tokens.tobytes().decode("utf-8") for tokens in load(record).values())

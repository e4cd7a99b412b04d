"""Files that are there whole or not at all, and digests that are not computed twice."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from kbitlib.runs import files
from kbitlib.runs.files import replace_file, sha256, shown


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_a_change_within_one_tick_of_the_clock_is_noticed(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"a")
    stat = file.stat()
    assert sha256(file) == digest(b"a")
    file.write_bytes(b"b")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256(file) == digest(b"b")


def test_a_file_at_rest_is_read_once_until_it_changes(tmp_path, monkeypatch):
    file, read, original = tmp_path / "file", [], hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *words: read.append(words) or original(*words))
    for turn, content in enumerate((b"a", b"b"), start=1):
        file.write_bytes(content)
        long_ago = time.time() - 1000 * turn
        os.utime(file, (long_ago, long_ago))
        assert [sha256(file), sha256(file)] == [digest(content)] * 2
        assert len(read) == turn


def test_replacing_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    file, scratch = tmp_path / "file", tmp_path / "scratch"
    replace_file(file, b"old", scratch)

    def fail(*_):
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="full"):
            replace_file(file, b"new", scratch)
    assert file.read_bytes() == b"old"
    assert list(scratch.iterdir()) == []
    replace_file(file, b"new", scratch)
    assert file.read_bytes() == b"new"


def test_paths_are_shown_without_the_folders_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "reports" / "store") == str(Path("reports", "store"))
    assert shown(tmp_path.parent / "store") == "store"

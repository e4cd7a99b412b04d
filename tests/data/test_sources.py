import os
import subprocess
import sys

import pytest

from kbitlib.data import sources
from kbitlib.data.sources import collect


def names(source) -> list[str]:
    return [document.name for document in collect(str(source)).documents]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("zwei – 二\n", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    return tmp_path


def test_a_folder_gives_its_texts_in_the_order_of_their_names_with_unix_lines(folder):
    documents = collect(str(folder)).documents
    assert [document.name for document in documents] == ["a.txt", "b/two.md"]
    assert documents[0].text == b"one\ntwo\nthree\n"
    assert documents[1].text.decode() == "zwei – 二\n"


def test_the_order_in_which_the_disk_lists_files_does_not_matter(folder, monkeypatch):
    expected = collect(str(folder))
    walk = os.walk

    def backwards(*arguments, **options):
        for root, folders, files in walk(*arguments, **options):
            folders.reverse()
            yield root, folders, files[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert collect(str(folder)) == expected


def test_a_file_is_one_document_without_its_byte_order_mark(tmp_path):
    (tmp_path / "note.txt").write_bytes(b"\xef\xbb\xbfhello\r\n")
    (document,) = collect(str(tmp_path / "note.txt")).documents
    assert document == ("note.txt", b"hello\n")


def test_what_is_no_text_is_passed_over_and_counted(folder):
    (folder / "image.png").write_bytes(b"\x89PNG\0\0\0" + bytes(range(256)))
    (folder / "utf16.txt").write_text("plain letters", encoding="utf-16-le")
    (folder / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / ".hidden").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    collection = collect(str(folder))
    assert [document.name for document in collection.documents] == ["a.txt", "b/two.md"]
    assert collection.skipped == {"binary": 2, "not UTF-8": 1, "hidden": 2}
    assert sources.describe(collection.skipped) == "2 binary, 2 hidden, 1 not UTF-8"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes symbolic links for administrators only")
def test_links_in_a_circle_broken_links_and_pipes_end_and_are_counted(folder):
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    (folder / "broken").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    collection = collect(str(folder))
    assert [document.name for document in collection.documents] == ["a.txt", "b/two.md"]
    assert collection.skipped == {"linked": 1, "unreadable": 2, "not a regular file": 1}


def test_an_unreadable_file_is_counted_in_a_folder_and_refused_alone(folder, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)  # the tests may run as root, whom no mode bits stop
    with pytest.raises(ValueError, match=r"holds no text \(2 unreadable\)"):
        collect(str(folder))
    with pytest.raises(ValueError, match=r"a\.txt' is unreadable"):
        collect(str(folder / "a.txt"))


def test_a_huge_line_is_text_like_any_other(tmp_path):
    (tmp_path / "line.txt").write_bytes(b"x" * 5_000_000)
    assert len(collect(str(tmp_path)).documents[0].text) == 5_000_000


def test_too_much_text_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(sources, "MAXIMUM_BYTES", 20)
    with pytest.raises(ValueError, match=r"too large at '.*two.md': at most 20 bytes are allowed"):
        collect(str(folder))


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./nothing.txt", "~nobody-here/x", "nul\0byte", "x" * 5000, "..", "a/b/c"]
)
def test_what_is_not_there_is_named_with_what_is_allowed(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="allowed are 'installed', a UTF-8 text file, a folder") as raised:
        collect(source)
    assert repr(source) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_empty_files_and_folders_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match="holds no text: allowed are"):
        collect(str(tmp_path))
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(ValueError, match="holds no text: allowed are"):
        collect(str(tmp_path))
    with pytest.raises(ValueError, match="holds no text: allowed are"):
        collect(str(tmp_path / "empty.txt"))


@pytest.mark.parametrize(("content", "reason"), [(b"MZ\0\0", "binary"), (b"caf\xe9 au lait", "not UTF-8")])
def test_a_single_file_that_is_no_text_is_refused(tmp_path, content, reason):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=f"file' is {reason}: allowed are"):
        collect(str(tmp_path / "file"))


def test_an_existing_path_wins_over_a_data_set_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert names("owner/name") == ["name"]


def test_installed_files_leave_out_tests_and_what_varies_by_machine(tmp_path):
    for name in ("__init__.py", "core.py", "conftest.py", "version.py", "test_it.py", "fast.so"):
        (tmp_path / name).write_text("x = 1\n")
    for name in ("tests/test_core.py", "distutils/core.py", "linalg/tests/a.py", "linalg/version.py", "testing/u.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    found = dict(sources.installed_files("numpy", tmp_path))
    assert sorted(found) == ["numpy/core.py", "numpy/linalg/version.py", "numpy/testing/u.py"]
    assert found["numpy/linalg/version.py"] == tmp_path / "linalg" / "version.py"


def test_the_installed_corpus_is_sorted_python_of_every_package_and_imports_none_of_them():
    code = (
        "import sys; from kbitlib.data.sources import collect; before = set(sys.modules);"
        "documents = collect('installed').documents; names = [d.name for d in documents];"
        "assert names == sorted(names) and len(set(names)) == len(names);"
        "assert all(b'\\r' not in d.text for d in documents);"
        "print(sorted({n.split('/')[0] for n in names}));"
        "print(sorted(m for m in ('pandas', 'scipy', 'sympy', 'torch') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(sorted(sources.PACKAGES)), "[]"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(sources, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(ValueError, match="needs the package no_such_package, which is not installed"):
        collect("installed")

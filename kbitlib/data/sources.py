"""Where text comes from: the Python source of installed packages, a text file, a folder, or a Hugging Face data set.

The default needs no download: every installation holds 59 MB of Python source that is the same byte for byte on
every machine with the same package versions.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kbitlib.data import hub

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "statsmodels", "sympy")
# These differ by platform, by Python version or by who built the package.
VARYING = frozenset(
    {
        "matplotlib/_version.py",
        "numpy/__config__.py",
        "numpy/__init__.py",
        "numpy/version.py",
        "pandas/__init__.py",
        "pandas/_version_meson.py",
        "scipy/__config__.py",
        "scipy/__init__.py",
        "scipy/version.py",
        "statsmodels/_version.py",
    }
)
VARYING_FOLDERS = frozenset({"numpy/distutils"})
# All of a corpus is held in memory, more than four times over at the peak.
MAXIMUM_BYTES = 1 << 29
ALLOWED = (
    "'installed', a UTF-8 text file, a folder of such files, or a Hugging Face data set as 'owner/name' or 'hf:name'"
)


class Document(NamedTuple):
    """A named piece of UTF-8 text whose lines end in LF."""

    name: str
    text: bytes


@dataclass
class Collection:
    """The documents of a source in a fixed order, and how many files were passed over, by reason."""

    documents: list[Document] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def collect(source: str) -> Collection:
    """Read every document of `source`, in an order that depends on the names alone.

    `source` is "installed"; else an existing file or folder; else the name of a Hugging Face data set, `owner/name` or
    `hf:name`, each with an optional `:config` and `:split`. Raises ValueError if it is none of these, cannot be had,
    holds no text, or more than 512 MiB of it.
    """
    if source == "installed":
        return _installed()
    path = _existing(source)
    if path is not None:
        collection = _folder(path) if path.is_dir() else _file(path)
    elif (name := hub.DatasetName.parse(source)) is not None:
        collection = _hub(source, name)
    else:
        raise ValueError(f"there is no corpus {source!r}: allowed are {ALLOWED}.")
    if not any(text.strip() for _, text in collection.documents):
        passed_over = describe(collection.skipped)
        raise ValueError(
            f"the corpus {source!r} holds no text{f' ({passed_over})' if passed_over else ''}: allowed are {ALLOWED}."
        )
    return collection


def _hub(source: str, name: hub.DatasetName) -> Collection:
    try:
        rows = hub.documents(name, MAXIMUM_BYTES)
    except ValueError as error:
        path_too = "" if source.startswith("hf:") else f"there is no file or folder {source!r}, and "
        raise ValueError(f"{path_too}{error}") from error
    return Collection([Document(row, unix_lines(text)) for row, text in rows])


def describe(skipped: Counter[str]) -> str:
    """Say in words what was passed over: "2 hidden, 1 not UTF-8"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))


def installed_versions() -> dict[str, str]:
    """The version of each package that the installed corpus is made of."""
    return {package: version(package) for package in PACKAGES}


def installed_files(package: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every Python file of a package at `root`, without its tests and what varies by machine."""
    for folder, folders, files in os.walk(root):
        parent = PurePosixPath(package) / Path(folder).relative_to(root).as_posix()
        folders[:] = [f for f in folders if f != "tests" and str(parent / f) not in VARYING_FOLDERS]
        for file in files:
            name = str(parent / file)
            if file.endswith(".py") and not file.startswith(("test_", "conftest")) and name not in VARYING:
                yield name, Path(folder, file)


def _installed() -> Collection:
    files: dict[str, Path] = {}
    for package in PACKAGES:
        spec = find_spec(package)  # finds the folder without the seconds that an import takes
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"the corpus 'installed' needs the package {package}, which is not installed.")
        files.update(installed_files(package, Path(spec.submodule_search_locations[0])))
    return Collection([Document(name, unix_lines(files[name].read_bytes())) for name in sorted(files)])


def unix_lines(raw: bytes) -> bytes:
    """Text without a byte order mark, every line ended by LF."""
    return raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _existing(source: str) -> Path | None:
    try:
        path = Path(source).expanduser()
        path.stat()
    except (OSError, ValueError, RuntimeError):  # absent, or no possible path: a NUL, a name too long, ~nobody
        return None
    return path


def _file(path: Path) -> Collection:
    text, reason = _read(path, MAXIMUM_BYTES)
    if text is None:
        raise ValueError(f"the corpus file {str(path)!r} is {reason}: allowed are {ALLOWED}.")
    return Collection([Document(path.name, text)])


def _folder(root: Path) -> Collection:
    collection = Collection()
    room = MAXIMUM_BYTES
    for path in sorted(_visible_files(root, collection.skipped), key=lambda path: path.relative_to(root).as_posix()):
        text, reason = _read(path, room)
        if text is None:
            collection.skipped[reason] += 1
        else:
            collection.documents.append(Document(path.relative_to(root).as_posix(), text))
            room -= len(text)
    return collection


def _visible_files(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    def unreadable(_: OSError) -> None:
        skipped["unreadable"] += 1

    for folder, folders, files in os.walk(root, onerror=unreadable):
        # Links to folders are not followed: they may lead in a circle.
        linked = [f for f in folders if not f.startswith(".") and Path(folder, f).is_symlink()]
        hidden = [f for f in folders + files if f.startswith(".")]
        skipped.update({reason: len(names) for reason, names in [("linked", linked), ("hidden", hidden)] if names})
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (Path(folder, f) for f in files if not f.startswith("."))


def _read(path: Path, room: int) -> tuple[bytes | None, str]:
    """The text of a file, or None and why not: what cannot be read, or is no text, is never an empty document."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            return None, "not a regular file"
        with path.open("rb") as file:
            head = file.read(8192)
            if b"\0" in head:  # the test that git and grep apply
                return None, "binary"
            if status.st_size > room:
                raise ValueError(
                    f"the corpus is too large at {str(path)!r}: at most {MAXIMUM_BYTES:,} bytes are allowed."
                )
            raw = head + file.read()
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except OSError:
        return None, "unreadable"
    return unix_lines(raw), ""

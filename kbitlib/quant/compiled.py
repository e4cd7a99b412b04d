"""C files of this package, compiled once with the machine's C compiler and kept in the user's cache."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from atexit import register
from collections.abc import Sequence
from pathlib import Path
from shlex import split

# What a compiler may know of, the best first; without OpenMP one thread does the work.
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())
ALWAYS = ("-shared", "-fPIC")


def load(source: Path, flags: Sequence[str], functions: Sequence[str], otherwise: str) -> ctypes.CDLL | None:
    """A C file's library, compiled now if it is not in the cache; None, with a warning, where that fails.

    functions: names that it must have. otherwise: what happens without it, for the warning.
    """
    try:
        chosen = split(os.environ.get("CC", ""))
    except ValueError as error:
        warnings.warn(f"CC = {os.environ['CC']!r} is no command ({error}): {otherwise}", stacklevel=3)
        return None
    found = [command for command in (chosen, ["cc"], ["gcc"], ["clang"]) if command and shutil.which(command[0])]
    if not found:
        warnings.warn(f"no C compiler (cc, gcc or clang) is found: {otherwise}", stacklevel=3)
        return None
    for best in FLAGS:
        try:
            loaded = ctypes.CDLL(str(_compiled(source, found[0], (*ALWAYS, *flags, *best))))
            if all(getattr(loaded, name) for name in functions):
                return loaded
        except (OSError, AttributeError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip()
    warnings.warn(f"{found[0][0]} does not compile {source.name}, so {otherwise}: {reason}", stacklevel=3)
    return None


def _compiled(source: Path, compiler: list[str], flags: tuple[str, ...]) -> Path:
    """The compiled file, known by the source, the flags, and what the compiler says of itself and the processor.

    Its name holds the hash of its content too, so that a damaged one is not loaded but made again.
    """
    command = [*compiler, *flags, "-dM", "-E", "-x", "c", os.devnull]
    about = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(source.read_bytes() + " ".join([*flags, about]).encode()).hexdigest()[:16]
    folder = _cache()
    for path in folder.glob(f"{key}.*.so"):
        if path.is_file() and path.name == f"{key}.{_digest(path)}.so":
            return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / "made.so"
        subprocess.run([*compiler, *flags, "-o", made, source, "-lm"], capture_output=True, text=True, check=True)
        return made.rename(folder / f"{key}.{_digest(made)}.so")


def _cache() -> Path:
    """The user's own folder for compiled files, or one for this process alone where that is not to be had."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (home if home.is_absolute() else Path("~/.cache").expanduser()) / "kbit-lab"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK) and (not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()):
            return folder  # what others own might hold what others wrote, and it is loaded
    except (OSError, RuntimeError):  # no folder to write to, or no home
        pass
    private = tempfile.mkdtemp()
    register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

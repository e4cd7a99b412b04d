"""Where a number comes from: the source code it rests on, and the machine, versions and command that made it."""

import ast
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import kbitlib
from kbitlib.runs.files import shown

PACKAGES = ("torch", "numpy", "scipy", "pandas", "statsmodels", "matplotlib", "papermill", "nbconvert")
COMMAND = "KBIT_COMMAND"  # the command a person typed, handed down to the processes it starts

# A module that rests on a file that is not Python names it in a string, as in `Path(__file__).with_name("matmul.c")`.
FILE_NAME = re.compile(r"[\w-]+(/[\w-]+)*\.(?!py$)\w+")


# The source code


@cache
def source_digest(module_name: str) -> str:
    """The sha256 of the code a module rests on: its own and, transitively, that of every kbitlib module it imports.

    Comments, docstrings, layout and `__version__` do not enter; files that are not Python, lie beside a module and are
    named in it (say `"matmul.c"`) enter as they are. `kbitlib.runs` stays outside: how a result is stored and on which
    process it is computed must not change it. Read once a process.

    Raises ValueError when the module's source cannot be found.
    """
    return digest_of(module_name, root="kbitlib", outside=("kbitlib.runs",))


def digest_of(module_name: str, root: str, outside: tuple[str, ...] = ()) -> str:
    """The sha256 over `module_name` and the modules of package `root` that it imports, except those in `outside`."""
    seen: dict[str, list[bytes]] = {}
    waiting = _with_parents(module_name)
    while waiting:
        name = waiting.pop()
        if name in seen or any(name == other or name.startswith(other + ".") for other in outside):
            continue
        file = _source_file(name)
        if file is None:
            if name == module_name:
                raise ValueError(
                    f"module {name!r} has no source file: a step must be a function of an importable module"
                )
            continue  # `from package import name`, where the name is no module
        tree = ast.parse(file.read_bytes(), filename=str(file))
        seen[name] = [_code(tree).encode(), *_named_files(tree, file.parent)]
        is_package = file.name == "__init__.py"
        for imported in _imports(tree, name if is_package else name.rpartition(".")[0]):
            if imported.partition(".")[0] == root:
                waiting += _with_parents(imported)
    total = hashlib.sha256()
    for name, parts in sorted(seen.items()):
        for part in (name.encode(), *parts):
            total.update(len(part).to_bytes(8) + part)
    return total.hexdigest()


def _source_file(name: str) -> Path | None:
    """The file of a module, found without running it (importing a parent package may cost seconds)."""
    top, *rest = name.split(".")
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None:
        return Path(loaded) if loaded.endswith(".py") else None
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # `__main__` of a script or a notebook has no spec
        return None
    if spec is None:
        return None
    if not rest and spec.origin is not None:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for file in (base / "__init__.py", base.with_name(base.name + ".py")):
            if file.is_file():
                return file
    return None


def _code(tree: ast.Module) -> str:
    """The module's code as text, without what no computation depends on."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_prose(statement)]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_prose(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__version__")]):
            return True
    return False


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Every name that may be an imported module, absolute; `package` is what relative imports start from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c: importing a module runs the `__init__` of each package above it."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _named_files(tree: ast.Module, folder: Path) -> list[bytes]:
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = sorted(text for text in texts if FILE_NAME.fullmatch(text))
    return [
        content
        for name in names
        if (folder / name).is_file()
        for content in (name.encode(), (folder / name).read_bytes())
    ]


# The machine


def provenance() -> dict[str, Any]:
    """What a result must carry to be made again: commit, versions, hardware, command, time of this call (UTC).

    What is unknown is None: `commit` outside a git checkout, `gpu` without one. memory_gb is in 10^9 bytes.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {**_constant(), "command": command(), "started": now}


@cache
def _constant() -> dict[str, Any]:
    return {
        **_commit(),
        "kbitlib": kbitlib.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": _gpu(),
    }


def usable_cores() -> int:
    """The number of cores this process may run on, which a container or batch system may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command() -> str:
    """The command that started this run, with folders left out of absolute paths so that it can be published."""
    return os.environ.get(COMMAND) or " ".join(_without_folders(word) for word in sys.argv)


def _without_folders(word: str) -> str:
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{shown(Path(value))}" if Path(value).is_absolute() else word


def _commit() -> dict[str, Any]:
    folder = Path(kbitlib.__file__).parent
    # Installed packages may lie inside a foreign checkout (a .venv does): only a tracked file's commit is ours.
    if _output("git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    changes = _output("git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _output("git", "-C", str(folder), "rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _gpu() -> str | None:
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return ", ".join(names.splitlines()) if names else None


def _output(*words: str) -> str | None:
    """What a program prints, or None when it is missing, fails or takes more than five seconds."""
    if shutil.which(words[0]) is None:
        return None
    try:
        run = subprocess.run(words, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()

"""The source digest changes with code and with nothing else; provenance says what made a record."""

import importlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

import kbitlib
from kbitlib.runs.provenance import PACKAGES, _commit, _output, command, digest_of, provenance, source_digest

FILES = {
    "__init__.py": '__version__ = "1"\n',
    "alone.py": "z = 1\n",
    "base/__init__.py": "from .deep import helper\n",
    "base/deep.py": "def helper(x):\n    '''Twice.'''\n    return 2 * x  # why\n",
    "base/unused.py": "z = 1\n",
    "only/__init__.py": "z = 1\n",
    "only/leaf.py": "z = 1\n",
    "wide/__init__.py": "z = 1\n",
    "wide/plain.py": 'SOURCE = "code.c"\n',
    "wide/dotted.py": "z = 1\n",
    "wide/up.py": "from ..wide.sideways import *\n",
    "wide/sideways.py": "z = 1\n",
    "wide/lazy.py": "z = 1\n",
    "wide/code.c": "int z = 1;\n",
    "wide/unnamed.c": "int z = 1;\n",
    "runs/__init__.py": "z = 1\n",
    "steps/__init__.py": "",
    "steps/main.py": """
import math
import lab_example.only.leaf as leaf
import lab_example.wide.dotted as dotted
from lab_example import base
from lab_example.runs import z
from lab_example.wide import plain, up

class Thing:
    '''A thing.'''
    size = 3
    '''Its size.'''

def step(settings, store):
    '''The step.'''
    from lab_example.wide.lazy import z
    return base.helper(z)

""",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of modules that import each other in every way; returns (edit, digest)."""
    root = tmp_path / "lab_example"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def edit(name, old, new):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return edit, lambda: digest_of("lab_example.steps.main", root="lab_example", outside=("lab_example.runs",))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("base/deep.py", "# why", "# because"),
        ("base/deep.py", "# why", "# why\n\n\n"),
        ("base/deep.py", "'''Twice.'''", "'''Two times.'''"),
        ("base/deep.py", "'''Twice.'''", ""),
        ("base/deep.py", "2 * x", "(2*x)"),
        ("steps/main.py", "'''The step.'''", "'''A step.'''"),
        ("steps/main.py", "'''A thing.'''", "'''It.'''"),
        ("steps/main.py", "'''Its size.'''", "'''How large it is.'''"),
        ("__init__.py", '"1"', '"2"'),
        ("alone.py", "1", "2"),
        ("base/unused.py", "1", "2"),
        ("runs/__init__.py", "1", "2"),
        ("wide/unnamed.c", "1", "2"),
    ],
)
def test_prose_and_unrelated_modules_keep_the_digest(package, name, old, new):
    edit, digest = package
    before = digest()
    edit(name, old, new)
    assert digest() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("steps/main.py", "size = 3", "size = 4"),
        ("steps/__init__.py", "", "z = 2"),
        ("__init__.py", "__version__", "version"),
        ("base/__init__.py", "from .deep import helper", "from .deep import helper; z = 2"),
        ("base/deep.py", "2 * x", "3 * x"),
        ("only/__init__.py", "1", "2"),
        ("only/leaf.py", "1", "2"),
        ("wide/__init__.py", "1", "2"),
        ("wide/plain.py", '"code.c"', '"unnamed.c"'),
        ("wide/dotted.py", "1", "2"),
        ("wide/up.py", "import *", "import z"),
        ("wide/sideways.py", "1", "2"),
        ("wide/lazy.py", "1", "2"),
        ("wide/code.c", "1", "2"),
    ],
)
def test_code_that_the_step_rests_on_changes_the_digest(package, name, old, new):
    edit, digest = package
    before = digest()
    edit(name, old, new)
    assert digest() != before


def test_nothing_is_imported_to_read_its_source(package):
    _, digest = package
    digest()
    assert not any(name.startswith("lab_example") for name in sys.modules)


def test_a_step_of_ones_own_module_rests_on_kbitlib(tmp_path, monkeypatch):
    (tmp_path / "own_example.py").write_text("from kbitlib.runs.store import Result\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    before = source_digest("own_example")
    assert len(before) == 64
    (tmp_path / "own_example.py").write_text("z = 2\n")
    assert source_digest("own_example") == before  # once a process: the code that is loaded is the old one
    source_digest.cache_clear()
    assert source_digest("own_example") != before


@pytest.mark.parametrize("name", ["builtins", "math", "absent_example", "absent.example"])
def test_a_module_without_source_is_refused(name):
    with pytest.raises(ValueError, match=f"module '{name}' has no source file"):
        digest_of(name, root="kbitlib")


def test_provenance_says_what_made_a_record():
    before = datetime.now(UTC).replace(microsecond=0)
    found = provenance()
    assert before <= datetime.fromisoformat(found["started"]) <= datetime.now(UTC)
    assert found["kbitlib"] == kbitlib.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert set(PACKAGES) == set(found["packages"])
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 1 <= found["cores"] <= os.cpu_count()
    assert found["memory_gb"] > 0
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found


def test_provenance_imports_no_heavy_package():
    code = """
import sys
from kbitlib.runs import provenance
provenance()
print(sorted({"torch", "pandas", "scipy", "matplotlib"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_command_shows_no_home_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("KBIT_COMMAND", raising=False)
    monkeypatch.chdir(tmp_path)
    words = ["/home/ada/.venv/bin/kbit", "run", f"--params={tmp_path}/params/p.yaml", "/home/ada/text", "-p", "k", "3"]
    monkeypatch.setattr(sys, "argv", words)
    assert command() == os.path.join("kbit run --params=params", "p.yaml text -p k 3")


def git(folder, *words):
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True
    )


def test_the_commit_is_that_of_the_library_or_none(tmp_path, monkeypatch):
    file = tmp_path / "package" / "__init__.py"
    file.parent.mkdir()
    file.write_text("a = 1\n")
    monkeypatch.setattr(kbitlib, "__file__", str(file))
    assert _commit() == {"commit": None, "dirty": None}  # no repository
    git(tmp_path, "init")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-m", "a")
    assert _commit() == {"commit": None, "dirty": None}  # a repository that is not the library's
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-m", "b")
    found = _commit()
    assert found["dirty"] is False
    assert len(found["commit"]) == 40
    file.write_text("a = 2\n")
    assert _commit() == {**found, "dirty": True}


@pytest.mark.parametrize("missing", ["git", "nvidia-smi"])
def test_a_missing_program_is_an_unknown(monkeypatch, missing):
    monkeypatch.setenv("PATH", "")
    assert _output(missing, "--version") is None


def test_a_failing_program_is_an_unknown():
    assert _output(sys.executable, "-c", "raise SystemExit(1)") is None
    assert _output(sys.executable, "-c", "print('a')") == "a"

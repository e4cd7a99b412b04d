"""The house: floors, dependencies, profiles and notebooks as the project promises them."""

import ast
import io
import json
import re
import tokenize
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kbitlib.experiments.settings import CHAPTERS, check, parameters

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "runs": 1, "data": 1, "laws": 1, "quant": 1,
    "report": 2, "methods": 2, "kernels": 2,
    "models": 3, "training": 4, "experiments": 5, "cli": 6,
}  # fmt: skip
PROFILES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONDA_NAMES = {"torch": "pytorch"}


def imported(path: Path) -> set[str]:
    """The parts of kbitlib that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kbitlib."):
            names.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kbitlib.")}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "kbitlib").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    part = path.relative_to(ROOT / "kbitlib").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    above = {name for name in imported(path) if FLOORS[name] > FLOORS[part]}
    assert not above


@pytest.mark.parametrize(
    ("part", "stranger"), [("laws", "torch"), ("runs", "torch"), ("report", "kbitlib.experiments")]
)
def test_what_a_part_knows_nothing_of(part: str, stranger: str) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "kbitlib" / part).rglob("*.py"))
    assert not re.search(rf"^\s*(import|from) {re.escape(stranger)}\b", text, flags=re.M)


def project() -> list[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return [Requirement(line) for line in tomllib.load(file)["project"]["dependencies"]]


def test_conda_takes_the_same_dependencies() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {Requirement(entry).name: Requirement(entry).specifier for entry in entries if isinstance(entry, str)}
    wanted = {CONDA_NAMES.get(requirement.name, requirement.name): requirement.specifier for requirement in project()}
    assert {name: spec for name, spec in conda.items() if name not in ("python", "pip")} == wanted


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert pins["torch"] == "2.13.0"
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for requirement in [*project(), *(Requirement(line) for extra in extras.values() for line in extra)]:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_profile_is_valid_for_every_chapter(profile: str, chapter: str) -> None:
    assert check(chapter, parameters(profile, chapter, {})).profile == profile


def test_the_laptop_family_spans_eighty_fold_in_six_sizes_with_seeds() -> None:
    settings = check("00_start_here", parameters("laptop", "00_start_here", {}))
    sizes = [shape.params_nonemb for shape in settings.shapes]
    assert len(sizes) >= 6
    assert max(sizes) >= 80 * min(sizes)
    assert min(settings.seeds[:3]) >= 3


def defaults(notebook: Path) -> tuple[str, dict[str, object]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    source = "".join(cell["source"])
    values = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(source).body}
    return source, values


def test_there_is_a_notebook_for_every_chapter() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == list(CHAPTERS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_defaults_are_the_smoke_profile(notebook: Path) -> None:
    assert defaults(notebook)[1] == parameters("smoke", notebook.stem, {})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_has_a_type_and_says_what_it_is(notebook: Path) -> None:
    source, values = defaults(notebook)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    nodes = ast.parse(source).body
    assert all(isinstance(node, ast.AnnAssign) and comments.get(node.lineno, "").strip("# ") for node in nodes)
    assert values


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)

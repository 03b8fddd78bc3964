"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import snello

SOURCE = Path(snello.__file__).parent
ROOT = Path(__file__).parents[1]
STATIONS = (
    "sensitivity",
    "pruning",
    "simplification",
    "codec",
    "deploy",
    "equilibrium",
    "models",
    "datasets",
)
PACKAGES = ("snello", *sorted(f"snello.{p.parent.name}" for p in SOURCE.glob("*/__init__.py")))
FILES = sorted(SOURCE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at the top or within functions."""
    names: set[str] = set()
    package = "snello." + ".".join(path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.rstrip(".").split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_codec_knows_arrays_not_modules() -> None:
    files = sorted((SOURCE / "codec").rglob("*.py"))
    assert files
    for path in files:
        assert not [name for name in _imports(path) if name.startswith("torch.nn")], path
        attributes = [
            node for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr == "nn"
            and isinstance(node.value, ast.Name) and node.value.id == "torch"
        ]  # fmt: skip
        assert not attributes, path


@pytest.mark.parametrize("station", STATIONS)
def test_stations_do_not_import_each_other(station: str) -> None:
    others = {f"snello.{name}" for name in STATIONS if name != station}
    above = {"snello.lab.training", "snello.lab.reporting", "snello.cli", "snello.store.modelfile"}
    for path in sorted((SOURCE / station).rglob("*.py")):
        crossing = {
            n
            for n in _imports(path)
            if any(n == o or n.startswith(f"{o}.") for o in others | above)
        }
        assert not crossing, path


def test_the_import_reader_sees_what_it_should() -> None:
    """Lest the laws above hold because nothing is found."""
    assert "snello.errors.SnelloError" in _imports(SOURCE / "__init__.py")
    assert "snello.simplification.plan_of" in _imports(SOURCE / "modelfile.py")
    assert "snello.lab.training._task.Classification" in _imports(SOURCE / "training" / "_run.py")
    assert "snello.lab.training.load_recipe" in _imports(SOURCE / "cli" / "_recipes.py")


@pytest.mark.parametrize("name", PACKAGES)
def test_public_docstrings(name: str) -> None:
    if name == "snello.lab.training":
        pytest.importorskip("lightning")
        pytest.importorskip("jsonargparse")
    package = importlib.import_module(name)
    assert package.__doc__, f"{name} has no docstring"
    for exported in getattr(package, "__all__", ()):
        thing = getattr(package, exported)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            # A dataclass without one gets its signature for a docstring.
            assert thing.__doc__, f"{name}.{exported}"
            assert not thing.__doc__.startswith(f"{exported}("), f"{name}.{exported}"
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    assert inspect.getdoc(getattr(thing, method)), f"{name}.{exported}.{method}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_version_is_the_top_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    top = re.search(r"^## \[?v?(\d+\.\d+\.\d+\S*?)\]?(?:\s|$)", changelog, re.MULTILINE)
    assert top is not None
    assert top[1] == snello.__version__


def test_contributing_maps_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
    assert set(STATIONS) <= set(folders)
    assert not [name for name in folders if not re.search(rf"\b{name}/", text)]

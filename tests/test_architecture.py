"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import tokenize
from pathlib import Path

import pytest

import snello

SOURCE = Path(snello.__file__).parent
ROOT = Path(__file__).parents[1]
PACKAGES = (
    "snello",
    *sorted(
        "snello." + ".".join(path.relative_to(SOURCE).parts[:-1])
        for path in SOURCE.glob("**/*/__init__.py")
    ),
)
FILES = sorted(SOURCE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at the top or within functions."""
    names: set[str] = set()
    inside = path.is_relative_to(SOURCE)
    package = "snello." + ".".join(path.relative_to(SOURCE).parts[:-1]) if inside else ""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.rstrip(".").split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def _private(names: set[str]) -> set[str]:
    """Those of the names that are snello's and have a private part; ``__version__`` is public."""
    return {name for name in names if re.match(r"snello(\.\w+)*?\._[a-zA-Z]", name)}


def test_private_names_stay_in_their_package() -> None:
    """The contracts of import-linter know packages, but not that an underscore means private."""
    found = {}
    for path in FILES:
        here = ["snello", *path.relative_to(SOURCE).parts[:-1]]
        for name in _private(_imports(path)):
            parts = name.split(".")
            private = next(i for i, part in enumerate(parts) if part.startswith("_"))
            if here[:private] != parts[:private]:
                found[name] = str(path.relative_to(SOURCE))
    assert not found


_PATCHES = ("test_additions.py", "test_api.py", "test_imports.py")
"""Tests with code of the package in strings."""


def test_tests_reach_private_modules_through_the_seams_alone() -> None:
    """Imports, and the names of modules in strings: those that monkeypatching takes, and code."""
    modules = {
        "snello." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in FILES
        if path.stem.startswith("_") and not path.stem.startswith("__")
    }
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        # The additions are patches of the source, which name its files.
        if path.parent.name == "seams" or path.name in _PATCHES:
            continue
        names = _private(_imports(path))
        for text in re.findall(r"snello(?:\.\w+)+", path.read_text()):
            names |= {module for module in modules if f"{text}.".startswith(f"{module}.")}
        if names:
            found[path.name] = sorted(names)
    assert not found


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


def test_the_import_reader_sees_what_it_should() -> None:
    """Lest the laws above hold because nothing is found."""
    assert "snello.errors.SnelloError" in _imports(SOURCE / "__init__.py")
    assert "snello.simplification.plan_of" in _imports(SOURCE / "store" / "record.py")
    private = {"snello.graph." + "_tracer", "snello." + "_version.__version__"}
    assert _private({"snello.errors", "snello.__version__", *private}) == private
    assert "snello.search.rate.search_rate" in _imports(SOURCE / "search" / "__init__.py")
    assert "snello.lab.recipes.load_recipe" in _imports(SOURCE / "cli" / "_recipes.py")


@pytest.mark.parametrize("name", PACKAGES)
def test_public_docstrings(name: str) -> None:
    if name.startswith(("snello.lab.training", "snello.lab.reporting", "snello.integrations")):
        pytest.importorskip("lightning")
        pytest.importorskip("jsonargparse")
    if name in ("snello.search.tune", "snello.lab.training.tuning"):
        pytest.importorskip("optuna")
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


def test_files_are_short() -> None:
    """Lines of code: a docstring that says more, or a comment, must not cost a split."""
    lines = {str(path.relative_to(SOURCE)): len(_code_lines(path)) for path in FILES}
    assert not {name: count for name, count in lines.items() if count > 300}


def _code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: no docstrings, comments or blank lines."""
    text, lines = path.read_text(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, *_INVISIBLE):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


_INVISIBLE = (tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def test_version_is_the_top_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    top = re.search(r"^## \[?v?(\d+\.\d+\.\d+\S*?)\]?(?:\s|$)", changelog, re.MULTILINE)
    assert top is not None
    assert top[1] == snello.__version__


def test_contributing_maps_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = [name.rpartition(".")[2] for name in PACKAGES[1:]]
    assert {"simplification", "lab", "training"} <= set(folders)
    assert not [name for name in folders if not re.search(rf"\b{name}/", text)]


def test_docstrings_open_with_a_noun_phrase_or_an_imperative() -> None:
    """At most one in a hundred opens with a question word (PEP 257: a phrase or a command)."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        (str(path.relative_to(SOURCE)), text)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and (text := ast.get_docstring(node))
    ]
    asking = [pair for pair in found if re.match(r"(What|Which|Whether|How|Who)\b", pair[1])]
    assert len(asking) <= len(found) / 100, asking


def test_lines_are_short() -> None:
    """At most one in a hundred is longer than 100 columns: tables and messages."""
    lengths = {str(path): list(map(len, path.read_text().splitlines())) for path in FILES}
    count = sum(map(len, lengths.values()))
    long = {path: sum(n > 100 for n in found) for path, found in lengths.items()}
    assert sum(long.values()) <= count / 100, {path: n for path, n in long.items() if n}

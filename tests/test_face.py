"""The face of the packages: the names that they export, and their size.

The names are locked in ``golden/public_names.txt``, a line for each package. After a change that is
meant, write them again with ``python tests/test_face.py --overwrite`` and read the difference.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import snello

GOLDEN = Path(__file__).parent / "golden" / "public_names.txt"
SOURCE = Path(snello.__file__).parent
SCREEN = 65
PACKAGES = ["snello", *(p.name for p in pkgutil.walk_packages([str(SOURCE)], "snello.") if p.ispkg)]


def _exported(package: str) -> list[str]:
    """Names in ``__all__``, read from the source: some packages need extras to be imported."""
    for node in ast.parse(_file(package).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    return []


def _file(package: str) -> Path:
    return SOURCE.joinpath(*package.split(".")[1:], "__init__.py")


def _lines() -> str:
    rows = ((package, _exported(package)) for package in PACKAGES)
    return "".join(f"{package}: {' '.join(names)}\n" for package, names in rows if names)


def test_exported_names_are_locked() -> None:
    assert _lines() == GOLDEN.read_text(), "see the docstring of this file"


def test_no_public_name_means_two_things() -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("jsonargparse")
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for package in PACKAGES:
        for name in _exported(package):
            thing = getattr(importlib.import_module(package), name)
            found[name][id(thing)].append(package)
    # The verbs of ``snello.store`` are those of ``snello`` itself; no other package may reuse one.
    twice = {name: list(places.values()) for name, places in found.items() if len(places) > 1}
    assert not twice


@pytest.mark.parametrize("package", PACKAGES)
def test_an_init_fits_on_a_screen(package: str) -> None:
    text = _file(package).read_text()
    docstring = ast.parse(text).body[0]
    assert isinstance(docstring, ast.Expr), f"{package} has no docstring"
    assert len(text.splitlines()) - docstring.end_lineno <= SCREEN


def test_signatures_are_readable() -> None:
    names = list(inspect.signature(snello.NEq).parameters)
    assert names == ["model", "optimizer", "probe", "eps", "mu", "formula", "smoothing", "options"]


if __name__ == "__main__":
    if sys.argv[1:] != ["--overwrite"]:
        raise SystemExit(f"usage: {sys.argv[0]} --overwrite")
    GOLDEN.write_text(_lines())

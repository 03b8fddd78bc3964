"""One style of imports: relative from a module's own folder or below it, absolute from elsewhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import snello

SOURCE = Path(snello.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def _faults(text: str, package: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            own = [a.name for a in node.names if a.name.split(".")[0] == "snello"]
            found += [f"import {name}: write from … import …" for name in own]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level > 1:
                found.append(f"from {'.' * node.level}{module}: write the absolute name")
            elif not node.level and (module == package or module.startswith(f"{package}.")):
                found.append(f"from {module}: write from .{module.removeprefix(package)[1:]}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_are_of_one_style(path: Path) -> None:
    package = ".".join(("snello", *path.relative_to(SOURCE).parts[:-1]))
    assert not _faults(path.read_text(), package)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("from snello.pruning._plan import Plan", True),
        ("from snello.pruning import Pruner", True),
        ("from .._plan import Plan", True),
        ("import snello.neurons", True),
        ("from ._plan import Plan", False),
        ("from .parts.plan import Plan", False),
        ("from snello.neurons import rows", False),
        ("from snello.pruning_tools import rows", False),
    ],
)  # fmt: skip
def test_the_reader_finds_what_it_should(line: str, fault: bool) -> None:
    assert bool(_faults(line, "snello.pruning")) is fault

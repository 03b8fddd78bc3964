"""Names of importances, datasets and formats for help and completion, without importing them.

The tables hold functions and classes, so that importing one imports torch, which takes a second.
Help needs the names alone. They are read from the source of the tables, which stay the one place
that an addition touches.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def importances() -> tuple[str, ...]:
    """Names of importances of weights and neurons; without those made from sensitivities."""
    file = "pruning/_importance.py"
    return (*_keys(file, "IMPORTANCES"), *_keys(file, "CALIBRATED"))


def channel_importances() -> tuple[str, ...]:
    """Names of importances of channels that need no data."""
    return _keys("pruning/channels/importances.py", "CHANNEL_IMPORTANCES")


def datasets() -> tuple[str, ...]:
    """Names of datasets."""
    return _keys("lab/datasets/_load.py", "_READERS")


def models() -> tuple[str, ...]:
    """Short names of the papers' networks."""
    return tuple(name.replace("_", "-") for name in _keys("lab/models/__init__.py", "FACTORIES"))


def formats() -> tuple[str, ...]:
    """Names of export formats."""
    return _class_values("deploy/formats", "name")


def suffixes() -> tuple[str, ...]:
    """Suffixes of the files that can be measured."""
    return (*_class_values("store", "suffix"), *_class_values("deploy/formats", "suffix"))


def runtimes() -> tuple[str, ...]:
    """Names of the runtimes that a PyTorch model can be timed in."""
    runners = _keys("deploy/measure/compare.py", "MODEL_RUNNERS")
    return (*runners, *_class_values("deploy/formats", "runtime"))


def samplers() -> tuple[str, ...]:
    """Names of the samplers of `snello tune`."""
    return _keys("search/tune/_choices.py", "SAMPLERS")


def pruners() -> tuple[str, ...]:
    """Names of the pruners of `snello tune`."""
    return _keys("search/tune/_choices.py", "PRUNERS")


def costs() -> tuple[str, ...]:
    """Names of the costs of `snello tune`."""
    return _keys("lab/training/tuning/_costs.py", "COSTS")


def complete_with(action: argparse.Action, names: Sequence[str]) -> None:
    """Complete an option's value with these names in a shell; other values stay possible."""
    action.completer = lambda **_: names  # type: ignore[attr-defined]


def _keys(file: str, table: str) -> tuple[str, ...]:
    """Keys of a mapping that a module assigns to a name, in order."""
    for target, value in _assignments(_tree(file).body):
        if target == table and isinstance(value, ast.Dict):
            return tuple(text for key in value.keys if (text := _text(key)) is not None)
    return ()


def _class_values(folder: str, attribute: str) -> tuple[str, ...]:
    """Texts that the classes in the files of a folder assign to an attribute."""
    trees = (_tree(str(path)) for path in sorted((_PACKAGE / folder).glob("*.py")))
    classes = (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    found = (pair for node in classes for pair in _assignments(node.body))
    values = (_text(value) for name, value in found if name == attribute)
    return tuple(dict.fromkeys(value for value in values if value is not None))


def _tree(file: str) -> ast.Module:
    try:
        return ast.parse((_PACKAGE / file).read_bytes())
    except OSError:  # an installation without sources: help lists no names
        return ast.Module([], [])


def _assignments(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr | None]]:
    for node in body:
        if isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target), node.value
        elif isinstance(node, ast.Assign):
            yield ast.unparse(node.targets[0]), node.value


def _text(node: ast.expr | None) -> str | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) else None

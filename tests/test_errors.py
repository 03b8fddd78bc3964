"""One tree of errors, and the pip command for what is not installed."""

from __future__ import annotations

import inspect
import json
import sys

import pytest

from snello import errors
from snello.errors import MissingExtraError, SnelloError, require

ALL = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_and_in_its_drawing(kind: type[Exception]) -> None:
    assert issubclass(kind, SnelloError)
    assert kind.__doc__
    if kind is not SnelloError:
        drawn = [
            line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line
        ]
        assert len(drawn) == 1
        assert "├──" in drawn[0] or "└──" in drawn[0]
        for builtin in (ValueError, ImportError):
            assert issubclass(kind, builtin) == (f"also {builtin.__name__}" in drawn[0])


@pytest.mark.parametrize("count", [0, -1, 1.0, float("nan"), True, "1", None])
def test_a_count_is_a_whole_number_of_at_least_one(count: object) -> None:
    errors.check_count("repeats", 1)
    with pytest.raises(errors.ConfigError) as found:
        errors.check_count("repeats", count, "; of each kind")
    assert str(found.value) == (
        f"repeats: must be a whole number, at least 1, not {count!r}; of each kind"
    )


def test_require_returns_the_module() -> None:
    assert require("json", "train", "writing") is json


def test_missing_module_names_extra_and_command() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("snello_needs_this.part", "nnc", "coding bitstreams")
    message = str(caught.value)
    assert message.startswith("coding bitstreams needs the package 'snello_needs_this'")
    assert message.endswith("install it with: pip install 'snello[nnc]'")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ImportError)


def test_extras_that_are_named_exist() -> None:
    """Every extra that the sources ask for is declared in pyproject.toml."""
    import ast
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    from snello.deploy import FORMATS

    formats = [f for f in FORMATS.values() if f.writes_with or f.runs_with]
    asked = {f.extra or f.name for f in formats}
    for path in (root / "src").rglob("*.py"):
        if path.name == "format.py":  # the base class asks for the extra of the format
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "require"
                and len(node.args) == 3
            ):
                extra = node.args[1]
                assert isinstance(extra, ast.Constant), f"{path}: the extra is no literal"
                asked.add(extra.value)
    assert asked
    assert asked <= declared.keys()


def test_missing_extra_of_a_real_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import snello

    monkeypatch.setitem(sys.modules, "nncodec", None)
    for name in [name for name in sys.modules if name.startswith("nncodec.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'snello\[nnc\]'"):
        snello.compress({"w": torch.randn(4, 4)})

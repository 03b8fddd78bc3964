"""Recipes written as YAML, the inverse of reading one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from snello.errors import require

from ._config import Recipe


def recipe_text(recipe: Recipe, comments: list[str]) -> str:
    """A recipe as the text of a YAML file that `load_recipe` reads as the same recipe.

    Values that are the defaults are left out.

    Args:
        recipe: the values.
        comments: first lines; the first is the recipe's description.

    Raises:
        MissingExtraError: without PyYAML (extra `train`).
    """
    yaml = require("yaml", "train", "writing recipes")
    head = "".join(f"# {line}".rstrip() + "\n" for line in comments)
    values = dict(_given(recipe))
    return head + str(yaml.safe_dump(values, sort_keys=False, default_flow_style=None))


def _given(options: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(options):
        value, default = getattr(options, field.name), _default(field)
        if value == default:
            continue
        # A block is compared with its own default: that of SeReNe is not that of LOBSTER.
        if is_dataclass(value) and is_dataclass(default):
            yield field.name, dict(_changed(asdict(value), asdict(default)))  # type: ignore[arg-type]
        else:
            yield field.name, _plain(asdict(value) if is_dataclass(value) else value)  # type: ignore[arg-type]


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if value != defaults[name]:
            yield name, _plain(value)


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _plain(value: Any) -> Any:
    """Data that YAML can hold: tuples become lists."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

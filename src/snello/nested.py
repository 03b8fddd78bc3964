"""Plain data in mappings and lists, as JSON and keyword arguments hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a mapping and of every mapping inside it, at any depth.

    Args:
        value: mappings, lists and tuples, nested in any way; anything else has no entries.

    Yields:
        Key (as text) and value, each mapping before what it contains.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key), inner
            yield from entries(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from entries(inner)

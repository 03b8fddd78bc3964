"""Entries of nested mappings."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from snello.nested import entries

PLAIN = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, (list, tuple)) else 0


@given(PLAIN)
def test_every_entry_at_any_depth_comes_once(value: Any) -> None:
    assert len([*entries(value)]) == _count(value)


def test_a_mapping_comes_before_what_it_holds() -> None:
    value = {"a": [{"b": 1}, ({"c": 2},)], 3: MappingProxyType({"d": "text"})}
    assert [key for key, _ in entries(value)] == ["a", "b", "c", "3", "d"]


def test_a_text_has_no_entries() -> None:
    assert [*entries("text")] == [*entries(None)] == []

"""Conversion of plans of earlier versions to the current one.

Version 2 had no border pattern tables, version 3 no gates; in versions 2 to 4 each kind of edit had
a separate list, and folds were flags of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSION = 5

_LISTS = {
    "numbers": "number", "gates": "gate", "fills": "fill", "drops": "drop", "sums": "sum",
    "picks": "pick", "overhangs": "overhang", "statics": "static",
}  # fmt: skip
"""Name of an earlier list -> tag of its records, in the order in which they were applied."""


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the JSON of a plan of version 2 to 5 to version 5.

    Raises:
        ValueError: for another version.
        KeyError, TypeError: if the plan is damaged.
    """
    version = data["version"]
    if version == VERSION:
        base = data["base"]
        return {**data, "base": None if base is None else upgraded(base)}
    if version not in (2, 3, 4):
        raise ValueError(f"plan of another version than 2 to {VERSION}")
    return _from_lists(data)


def _from_lists(data: Mapping[str, Any]) -> dict[str, Any]:
    edits = [
        {"kind": tag, **record} for name, tag in _LISTS.items() for record in data.get(name, ())
    ]
    return {
        **{key: data[key] for key in ("input_shapes", "attentions", "norms", "left_alone")},
        "layers": {name: _with_folds(layer) for name, layer in data["layers"].items()},
        "parameters": {name: [part] for name, part in data["parameters"].items()},
        "edits": edits,
        "base": None if data["base"] is None else _from_lists(data["base"]),
        "representation": "graph",
        "constants": data.get("constants", {}),
        "attributes": {},
    }


def _with_folds(layer: Mapping[str, Any]) -> dict[str, Any]:
    flags = ("border", "table", "gated")
    folds: list[dict[str, Any]] = []
    if layer["border"]:
        folds.append({"kind": "border"})
    if layer.get("table"):
        folds.append({"kind": "table", "patterns": layer["table"]})
    if layer.get("gated"):
        folds.append({"kind": "gated", "channels": layer["gated"]})
    return {**{key: value for key, value in layer.items() if key not in flags}, "folds": folds}

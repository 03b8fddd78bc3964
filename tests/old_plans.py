"""Plans in the JSON of earlier versions: a list for each kind of edit, flags for folds."""

from __future__ import annotations

import json
from typing import Any

from snello.simplification import SimplificationPlan

_LISTS = {
    "fill": "fills", "sum": "sums", "pick": "picks", "drop": "drops", "number": "numbers",
    "overhang": "overhangs", "gate": "gates", "static": "statics",
}  # fmt: skip
_NEW = {2: ("overhangs", "gates", "statics"), 3: ("gates", "statics"), 4: ()}
"""Version -> lists that it did not have yet."""


def as_version(plan: SimplificationPlan, version: int) -> str:
    """Write a plan as an earlier version did; it must not need anything newer."""
    return json.dumps({"version": version, **_lists(json.loads(plan.to_json()), version)})


def _lists(data: dict[str, Any], version: int) -> dict[str, Any]:
    old = {key: data[key] for key in ("input_shapes", "attentions", "norms", "left_alone")}
    old["layers"] = {name: _flags(layer, version) for name, layer in data["layers"].items()}
    old["parameters"] = {name: part for name, (part,) in data["parameters"].items()}
    old["base"] = data["base"] and _lists(data["base"], version)
    old.update({name: [] for name in _LISTS.values() if name not in _NEW[version]})
    for edit in data["edits"]:
        old[_LISTS[edit.pop("kind")]].append(edit)
    return old


def _flags(layer: dict[str, Any], version: int) -> dict[str, Any]:
    folds = {fold["kind"]: fold for fold in layer.pop("folds")}
    layer["border"] = "border" in folds
    if version > 2:
        layer["table"] = folds.get("table", {}).get("patterns", 0)
    if version > 3:
        layer["gated"] = folds.get("gated", {}).get("channels", 0)
    return layer

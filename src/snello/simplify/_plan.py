"""The plan: everything that the rewrite needs to know, frozen, printable, and JSON-serialisable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from snello.errors import ModelError

VERSION = 1


@dataclass(frozen=True)
class LayerPlan:
    """One layer with weights.

    Attributes:
        outputs, inputs: full widths, in the original.
        kept_outputs, kept_inputs: indices that stay, ascending.
        bias: whether the lean layer has a bias (folded constants may need one).
        border: whether a constant kernel accounts for constants that zero padding cuts off at the border.
    """

    outputs: int
    inputs: int
    kept_outputs: tuple[int, ...]
    kept_inputs: tuple[int, ...]
    bias: bool
    border: bool


@dataclass(frozen=True)
class Adapter:
    """An operation that the lean graph inserts between a node and one reader of it.

    Attributes:
        reader, operand: names of the nodes in the traced graph.
        index: for each channel that the reader expects, its position among the present ones, or -1 if it is
            absent. None if nothing is present: then only the constant is added, to the other operand.
        width: how many channels the reader expects.
        constant: whether any absent channel has a non-zero value.
    """

    reader: str
    operand: str
    index: tuple[int, ...] | None
    width: int
    constant: bool


@dataclass(frozen=True)
class SimplificationPlan:
    """What simplification does to one model.

    Attributes:
        input_shapes: shapes of the example inputs, batch first.
        layers: layer name -> what stays of it.
        norms: name of each BatchNorm -> the channels that stay.
        removed: names of nodes that vanish: nothing of their output exists, or only padding.
        adapters: index operations at joins and before operations without a rule.
        left_alone: node or layer name -> why nothing was removed there.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    layers: Mapping[str, LayerPlan]
    norms: Mapping[str, tuple[int, ...]]
    removed: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    left_alone: Mapping[str, str]

    @property
    def neurons_removed(self) -> int:
        """How many neurons of layers with weights are taken out."""
        return sum(layer.outputs - len(layer.kept_outputs) for layer in self.layers.values())

    def to_json(self) -> str:
        """As JSON; :meth:`from_json` is the inverse."""
        return json.dumps({"version": VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> SimplificationPlan:
        """From JSON.

        Raises:
            ModelError: if the text is no plan of this version.
        """
        try:
            data = json.loads(text)
            if data.pop("version") != VERSION:
                raise ValueError(f"plan of another version than {VERSION}")
            return SimplificationPlan(
                input_shapes=tuple(tuple(s) for s in data["input_shapes"]),
                layers={name: _layer(layer) for name, layer in data["layers"].items()},
                norms={name: tuple(kept) for name, kept in data["norms"].items()},
                removed=tuple(data["removed"]),
                adapters=tuple(_adapter(a) for a in data["adapters"]),
                left_alone=dict(data["left_alone"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"this is not a simplification plan: {error!r}") from error

    def __str__(self) -> str:
        width = max((len(name) for name in self.layers), default=0)
        lines = [f"{'layer':{width}}  outputs        inputs"]
        for name, layer in self.layers.items():
            outputs = f"{len(layer.kept_outputs)}/{layer.outputs}"
            inputs = f"{len(layer.kept_inputs)}/{layer.inputs}"
            lines.append(f"{name:{width}}  {outputs:13}  {inputs}{'  border' if layer.border else ''}")
        lines += [f"index operation: {a.operand} -> {a.reader}" for a in self.adapters]
        lines += [f"left alone: {name}: {why}" for name, why in self.left_alone.items()]
        return "\n".join(lines)


def _layer(data: dict[str, Any]) -> LayerPlan:
    kept = {key: tuple(int(i) for i in data[key]) for key in ("kept_outputs", "kept_inputs")}
    return LayerPlan(
        outputs=int(data["outputs"]), inputs=int(data["inputs"]), **kept,
        bias=bool(data["bias"]), border=bool(data["border"]),
    )  # fmt: skip


def _adapter(data: dict[str, Any]) -> Adapter:
    index = None if data["index"] is None else tuple(int(i) for i in data["index"])
    return Adapter(
        str(data["reader"]), str(data["operand"]), index, int(data["width"]), bool(data["constant"])
    )

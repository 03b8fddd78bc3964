"""The plan of a simplification: frozen, printable, and JSON-serialisable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from snello.errors import ModelError

from .domain import Domain
from .edits import GraphEdit
from .folds import Fold
from .records import Record
from .versions import VERSION, upgraded

Representation = Literal["graph", "module"]
AnyEdit = TypeVar("AnyEdit", bound=GraphEdit)
AnyFold = TypeVar("AnyFold", bound=Fold)


@dataclass(frozen=True)
class LayerPlan(Record):
    """One layer with weights.

    Attributes:
        outputs, inputs: full widths, in the original.
        kept_outputs, kept_inputs: original indices of the kept neurons and input channels, in the
            lean layer's order.
        groups: number of groups of the original convolution; 1 for other layers.
        bias: whether the lean layer has a bias (folded constants may need one).
        folded: number of constant inputs other than zero that were folded into the layer.
        folds: constants that the lean layer adds in addition to its bias.
    """

    outputs: int
    inputs: int
    kept_outputs: tuple[int, ...]
    kept_inputs: tuple[int, ...]
    groups: int
    bias: bool
    folded: int
    folds: tuple[Fold, ...] = ()

    def fold(self, kind: type[AnyFold]) -> AnyFold | None:
        """Return the fold of a kind; None if the layer has none."""
        return next((fold for fold in self.folds if isinstance(fold, kind)), None)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "folds": [fold.to_dict() for fold in self.folds]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerPlan:
        folds = tuple(Fold.of_any_kind(fold) for fold in data.get("folds", ()))
        return super().from_dict({**data, "folds": folds})


@dataclass(frozen=True)
class AttentionPlan(Record):
    """One self-attention: `nn.MultiheadAttention`, or an attention in windows.

    Attributes:
        outputs, inputs: widths of the module that is narrowed.
        heads, width: number of heads of the original, and width of each.
        kept_outputs, kept_inputs: original indices of the kept channels, in the lean module's
            order.
        kept_heads: original indices of the kept heads, in the lean module's order.
        rows: kept rows of the packed projection (queries, keys, values: 3 * heads * width in the
            original), in the lean module's order. Those of values are also the columns of the
            output projection.
        constants: rows of queries whose value is a constant other than zero; the values are the
            buffer `constant`.
        biased: number of the leading kept heads that have a computed position bias.
        hidden: kept hidden neurons of the network that computes the position bias.
        bias, out_bias, position_bias: whether the packed projection, the output projection and the
            network of the position bias have a bias.
        folded: number of constants other than zero that were folded.
    """

    outputs: int
    inputs: int
    heads: int
    width: int
    kept_outputs: tuple[int, ...]
    kept_inputs: tuple[int, ...]
    kept_heads: tuple[int, ...]
    rows: tuple[int, ...]
    constants: tuple[int, ...]
    biased: int
    hidden: tuple[int, ...]
    bias: bool
    out_bias: bool
    position_bias: bool
    folded: int


@dataclass(frozen=True)
class Slice(Record):
    """Channels of a bare parameter or buffer that stay, along one axis."""

    axis: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class SimplificationPlan:
    """Everything that simplification does to one model.

    Attributes:
        input_shapes: shapes of the tensors among the example inputs, in order, batch first.
        layers: name -> plan of each layer with weights.
        attentions: name -> plan of each self-attention that is narrowed.
        norms: name of each module with one parameter per channel (BatchNorm, LayerNorm, PReLU) ->
            the kept channels, in order.
        parameters: qualified name of a parameter, buffer or embedding that is an operand by itself
            -> its kept indices along each axis that is narrowed.
        edits: changes to the graph, in the order in which they are applied.
        left_alone: layer or node name -> why nothing was removed there.
        attributes: qualified name of an attribute that holds a width, or a tuple of them -> its new
            value. Only used if `representation` is "module".
        constants: arguments of the forward that are fixed -> their value; the lean model does not
            take them. The stars of `*args` and `**kwargs` are part of the name.
        base: the plan of an earlier simplification of the model, or None. The names and indices of
            this plan refer to the lean model of that plan.
        representation: "graph" for a captured graph with the original layer names, "module" for the
            user's own module, narrowed in place; the latter needs a plan without edits.
        reason: why the representation was chosen; may be empty.
        domain: the sizes and modes for which the captured graph was compared with the model.
    """

    input_shapes: tuple[tuple[int, ...], ...] = ()
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    attentions: Mapping[str, AttentionPlan] = field(default_factory=dict)
    norms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)
    edits: tuple[GraphEdit, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict)
    base: SimplificationPlan | None = None
    representation: Representation = "graph"
    constants: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    reason: str = ""
    domain: Domain | None = None

    def edits_of(self, kind: type[AnyEdit]) -> tuple[AnyEdit, ...]:
        """Return the edits of a kind, in order."""
        return tuple(edit for edit in self.edits if isinstance(edit, kind))

    @property
    def generation(self) -> int:
        """Number of simplifications of the original model, including this one."""
        return 1 if self.base is None else self.base.generation + 1

    @property
    def neurons_removed(self) -> int:
        """Number of removed neurons of layers with weights, projections of attention included."""
        neurons = sum(layer.outputs - len(layer.kept_outputs) for layer in self.layers.values())
        rows = sum(3 * x.heads * x.width - len(x.rows) for x in self.attentions.values())
        return (
            neurons + rows + sum(x.outputs - len(x.kept_outputs) for x in self.attentions.values())
        )

    @property
    def index_operations(self) -> int:
        """Number of operations that copy channels by index and that the original does not have."""
        return sum(edit.moves_channels for edit in self.edits)

    def to_json(self) -> str:
        """The plan as JSON; `from_json` is the inverse."""
        return json.dumps(self._to_dict())

    def _to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "input_shapes": self.input_shapes,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "attentions": {
                name: attention.to_dict() for name, attention in self.attentions.items()
            },
            "norms": dict(self.norms),
            "parameters": {
                name: [s.to_dict() for s in slices] for name, slices in self.parameters.items()
            },
            "edits": [edit.to_dict() for edit in self.edits],
            "left_alone": dict(self.left_alone),
            "base": None if self.base is None else self.base._to_dict(),
            "representation": self.representation,
            "constants": dict(self.constants),
            "attributes": dict(self.attributes),
            **({"reason": self.reason} if self.reason else {}),
            **({} if self.domain is None else {"domain": self.domain.to_dict()}),
        }

    @staticmethod
    def from_json(text: str) -> SimplificationPlan:
        """Read a plan from JSON, of this version or an earlier one (2 to 4).

        Raises:
            ModelError: if the text is not a plan, or has a version that cannot be read.
        """
        try:
            return SimplificationPlan._from_dict(upgraded(json.loads(text)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"this is not a simplification plan: {error!r}") from error

    @staticmethod
    def _from_dict(data: Mapping[str, Any]) -> SimplificationPlan:
        if data["representation"] not in ("graph", "module"):
            raise ValueError(f"representation {data['representation']!r}")
        return SimplificationPlan(
            input_shapes=tuple(tuple(int(n) for n in s) for s in data["input_shapes"]),
            layers={name: LayerPlan.from_dict(layer) for name, layer in data["layers"].items()},
            attentions={name: AttentionPlan.from_dict(x) for name, x in data["attentions"].items()},
            norms={name: tuple(int(i) for i in kept) for name, kept in data["norms"].items()},
            parameters={
                name: tuple(Slice.from_dict(part) for part in parts)
                for name, parts in data["parameters"].items()
            },
            edits=tuple(GraphEdit.of_any_kind(edit) for edit in data["edits"]),
            left_alone={str(name): str(why) for name, why in data["left_alone"].items()},
            base=None if data["base"] is None else SimplificationPlan._from_dict(data["base"]),
            representation=data["representation"],
            constants={
                str(name): tuple(value) if isinstance(value, list) else value
                for name, value in data["constants"].items()
            },
            attributes={
                str(name): tuple(map(int, value)) if isinstance(value, list) else int(value)
                for name, value in data["attributes"].items()
            },
            # Earlier releases wrote version 5 without these two, which only inform the user.
            reason=str(data.get("reason", "")),
            domain=None if data.get("domain") is None else Domain.from_dict(data["domain"]),
        )

    def __str__(self) -> str:
        width = max((len(name) for name in (*self.layers, *self.attentions)), default=0)
        lines = [f"{'layer':{width}}  outputs        inputs"]
        for name, layer in self.layers.items():
            outputs = f"{len(layer.kept_outputs)}/{layer.outputs}"
            inputs = f"{len(layer.kept_inputs)}/{layer.inputs}"
            lines.append(f"{name:{width}}  {outputs:13}  {inputs}{_folding(layer)}")
        lines += [_attention(name, x, width) for name, x in self.attentions.items()]
        lines += [
            f"narrowed: {name}: " + ", ".join(f"axis {s.axis} to {len(s.kept)}" for s in slices)
            for name, slices in self.parameters.items()
        ]
        lines += [line for edit in self.edits if (line := edit.describe())]
        lines += [f"attribute set: {name} = {value}" for name, value in self.attributes.items()]
        lines += [f"{self.representation}: {self.reason}"] if self.reason else []
        lines += [f"left alone: {name}: {why}" for name, why in self.left_alone.items()]
        return "\n".join(lines)


def _folding(layer: LayerPlan) -> str:
    if not layer.folded:
        return ""
    place = layer.folds[0].place if layer.folds else "bias"
    return f"  {layer.folded} constants folded into the {place}"


def _attention(name: str, plan: AttentionPlan, width: int) -> str:
    outputs = f"{len(plan.kept_outputs)}/{plan.outputs}"
    inputs = f"{len(plan.kept_inputs)}/{plan.inputs}"
    rows = f"{len(plan.rows)}/{3 * plan.heads * plan.width} queries, keys and values"
    return (
        f"{name:{width}}  {outputs:13}  {inputs}  {len(plan.kept_heads)}/{plan.heads} heads, {rows}"
    )

"""The plan: everything that the rewrite needs to know, frozen, printable, and JSON-serialisable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar, cast

from snello.errors import ModelError

VERSION = 4
READABLE = (2, 3, VERSION)
"""Version 2 had no tables by position, version 3 no gates."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer with weights.

    Attributes:
        outputs, inputs: full widths, in the original.
        kept_outputs, kept_inputs: original indices of what stays, in the lean layer's order.
        groups: of the original convolution; 1 for other layers.
        bias: whether the lean layer has a bias (folded constants may need one).
        border: whether a constant kernel accounts for constants that zero padding cuts off at the border.
        folded: how many constant inputs other than zero were folded into the layer.
        table: in how many ways the kernel of a convolution before this one can hang over the border: as many
            columns has the table of what inputs that depend on the position alone add. 0 without a table.
        gated: how many channels of a gate the layer reads instead of their products with constants.
    """

    outputs: int
    inputs: int
    kept_outputs: tuple[int, ...]
    kept_inputs: tuple[int, ...]
    groups: int
    bias: bool
    border: bool
    folded: int
    table: int = 0
    gated: int = 0


@dataclass(frozen=True)
class AttentionPlan:
    """One self-attention: ``nn.MultiheadAttention``, or the window attention of Swin.

    Attributes:
        outputs, inputs: widths of the module that is narrowed.
        heads, width: how many heads the original has, and how wide each is.
        kept_outputs, kept_inputs: indices of what stays, in the lean module's order.
        kept_heads: original indices of the heads that stay, in the lean module's order.
        rows: rows of the packed projection (queries, keys, values: 3 * heads * width in the original) that
            stay, in the lean module's order. Those of values are also the columns of the output projection.
        constants: rows of queries that are one number other than zero: they are the buffer ``constant``.
        biased: how many of the kept heads, the first ones, have a position bias that a network computes.
        hidden: hidden neurons of that network that stay.
        bias, out_bias, position_bias: whether the projections and the network have a bias.
        folded: how many constants other than zero were folded.
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
class Fill:
    """A node that the lean graph inserts behind ``operand``, for some of its readers.

    Attributes:
        name: of the inserted module.
        operand, readers: names of nodes in the traced graph.
        axis: of the channels.
        appended: how many absent channels are appended; their values are the module's ``constant``.
        zero: whether all of those values are zero (then they are not stored).
        index: which of the present and appended channels the readers receive, in order; None for all.
    """

    name: str
    operand: str
    readers: tuple[str, ...]
    axis: int
    appended: int
    zero: bool
    index: tuple[int, ...] | None


@dataclass(frozen=True)
class Sum:
    """A sum of two tensors that carry different channels.

    Attributes:
        name: of the inserted module.
        node: the sum in the traced graph.
        base: position among the sum's arguments of the operand that the other one is added to.
        axis: of the channels.
        grown: how many channels are appended to the base before the addition.
        width: how many channels the result has.
        index: channel of the result that each channel of the other operand is added to; None if that operand
            has no channel at all.
        constants: channels of the result that a constant is added to (the module's ``constant``).
        in_place: whether the base may be overwritten when no gradient is recorded.
    """

    name: str
    node: str
    base: int
    axis: int
    grown: int
    width: int
    index: tuple[int, ...] | None
    constants: tuple[int, ...]
    in_place: bool


@dataclass(frozen=True)
class Pick:
    """A node replaced by some channels of an operand (a slice, a chunk, a shuffle), or by all of it.

    Attributes:
        name: of the inserted module.
        node, operand: names of nodes in the traced graph.
        axis: of the channels.
        index: positions of the channels in the lean operand; None for all of them, as they are.
    """

    name: str
    node: str
    operand: str
    axis: int
    index: tuple[int, ...] | None


@dataclass(frozen=True)
class Drop:
    """Operands of a concatenation of which nothing is left, by position in its list."""

    node: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Number:
    """A literal number in the lean graph.

    Attributes:
        node: name of a node in the traced graph.
        position: which of the size arguments of a view becomes the literal; -1 if the node itself does.
        value: the number.
    """

    node: str
    position: int
    value: int


@dataclass(frozen=True)
class Overhang:
    """A node that tells a layer with a table how, at each position, the kernel of an earlier one hangs over.

    Attributes:
        name: of the inserted module.
        operand: name of the node that the earlier convolution reads: its size decides.
        reader: name of the node that has the table.
        kernel, stride, dilation: of the earlier convolution, for each axis.
        before, after: its zero padding at either end of each axis.
    """

    name: str
    operand: str
    reader: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def cut(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many taps can be cut off at most, before and after, for each axis."""
        ends = (
            [-(-p // d) for p, d in zip(side, self.dilation, strict=True)]
            for side in (self.before, self.after)
        )
        before, after = map(tuple, ends)
        return before, after

    @property
    def is_partial(self) -> bool:
        """Whether some tap stays inside at either end."""
        return all(max(ends) < kernel for kernel, *ends in zip(self.kernel, *self.cut, strict=True))


@dataclass(frozen=True)
class Statics(Overhang):
    """Channels before a squeeze-and-excitation that depend on the position alone, worked out by a node of their own.

    The attributes of :class:`Overhang` speak of the convolution that padded them; ``reader`` reads the gate.

    Attributes:
        average, squeeze: names of the node that averages over the positions, and of the layer that reads that.
        activations: names of the modules between convolution and gate.
        channels: how many there are.
        constants: how many channels of the gate, the first ones that the reader reads, multiply constants instead.
        averaged: which channels' averages are appended to the others.
    """

    average: str
    squeeze: str
    activations: tuple[str, ...]
    channels: int
    constants: int
    averaged: tuple[int, ...]


@dataclass(frozen=True)
class Gating:
    """A gate that a layer reads beside its input.

    Attributes:
        operand: name of the node that is the gate, of shape (N, C, 1, ...).
        reader: name of the node that reads it.
    """

    operand: str
    reader: str


@dataclass(frozen=True)
class Slice:
    """A bare parameter or buffer of which some channels stay, along one axis."""

    axis: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class SimplificationPlan:
    """What simplification does to one model.

    Attributes:
        input_shapes: shapes of the example inputs, batch first.
        layers: name -> what stays of each layer with weights.
        attentions: name -> what stays of each self-attention that is narrowed.
        norms: name of each module with one parameter per channel (BatchNorm, LayerNorm, PReLU) -> the
            channels that stay, in order.
        parameters: qualified name of a bare parameter, buffer or embedding -> what stays of it.
        fills, sums, picks, drops, numbers, overhangs, gates, statics: changes to the graph.
        left_alone: layer or node name -> why nothing was removed there.
        base: the plan that had made the model lean before, if any: this one speaks of that lean model.
        constants: arguments of the forward that the captured path fixes, such as an optional one that was
            left out; see :attr:`snello.graph.Graph.constants`. The lean model does not take them.
    """

    input_shapes: tuple[tuple[int, ...], ...] = ()
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    attentions: Mapping[str, AttentionPlan] = field(default_factory=dict)
    norms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: Mapping[str, Slice] = field(default_factory=dict)
    fills: tuple[Fill, ...] = ()
    sums: tuple[Sum, ...] = ()
    picks: tuple[Pick, ...] = ()
    drops: tuple[Drop, ...] = ()
    numbers: tuple[Number, ...] = ()
    overhangs: tuple[Overhang, ...] = ()
    gates: tuple[Gating, ...] = ()
    statics: tuple[Statics, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict)
    base: SimplificationPlan | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """How many plans there are, with those before this one."""
        return 1 if self.base is None else self.base.generation + 1

    @property
    def neurons_removed(self) -> int:
        """How many neurons of layers with weights are taken out."""
        neurons = sum(layer.outputs - len(layer.kept_outputs) for layer in self.layers.values())
        rows = sum(3 * x.heads * x.width - len(x.rows) for x in self.attentions.values())
        return neurons + rows + sum(x.outputs - len(x.kept_outputs) for x in self.attentions.values())

    @property
    def index_operations(self) -> int:
        """How many operations the lean graph has that move channels about, and the original has not."""
        return len(self.fills) + len(self.sums) + sum(pick.index is not None for pick in self.picks)

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
            if data.pop("version") not in READABLE:
                raise ValueError(f"plan of another version than {' and '.join(map(str, READABLE))}")
            return SimplificationPlan._from_dict(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"this is not a simplification plan: {error!r}") from error

    @staticmethod
    def _from_dict(data: Mapping[str, Any]) -> SimplificationPlan:
        return SimplificationPlan(
            input_shapes=tuple(tuple(int(n) for n in s) for s in data["input_shapes"]),
            layers={name: _record(LayerPlan, layer) for name, layer in data["layers"].items()},
            attentions={name: _record(AttentionPlan, x) for name, x in data["attentions"].items()},
            norms={name: tuple(int(i) for i in kept) for name, kept in data["norms"].items()},
            parameters={name: _record(Slice, part) for name, part in data["parameters"].items()},
            fills=tuple(_record(Fill, x) for x in data["fills"]),
            sums=tuple(_record(Sum, x) for x in data["sums"]),
            picks=tuple(_record(Pick, x) for x in data["picks"]),
            drops=tuple(_record(Drop, x) for x in data["drops"]),
            numbers=tuple(_record(Number, x) for x in data["numbers"]),
            overhangs=tuple(_record(Overhang, x) for x in data.get("overhangs", ())),
            gates=tuple(_record(Gating, x) for x in data.get("gates", ())),
            statics=tuple(_record(Statics, x) for x in data.get("statics", ())),
            left_alone={str(name): str(why) for name, why in data["left_alone"].items()},
            base=None if data["base"] is None else SimplificationPlan._from_dict(data["base"]),
            constants={
                str(name): tuple(value) if isinstance(value, list) else value
                for name, value in data.get("constants", {}).items()
            },
        )

    def __str__(self) -> str:
        width = max((len(name) for name in (*self.layers, *self.attentions)), default=0)
        lines = [f"{'layer':{width}}  outputs        inputs"]
        for name, layer in self.layers.items():
            outputs = f"{len(layer.kept_outputs)}/{layer.outputs}"
            inputs = f"{len(layer.kept_inputs)}/{layer.inputs}"
            lines.append(f"{name:{width}}  {outputs:13}  {inputs}{_folding(layer)}")
        lines += [_attention(name, x, width) for name, x in self.attentions.items()]
        lines += [f"channels put in place: {x.operand} -> {', '.join(x.readers)}" for x in self.fills]
        lines += [f"channels added by index: {x.node}" for x in self.sums]
        lines += [f"channels picked: {x.operand} -> {x.node}" for x in self.picks if x.index is not None]
        lines += [f"left alone: {name}: {why}" for name, why in self.left_alone.items()]
        return "\n".join(lines)


def _folding(layer: LayerPlan) -> str:
    if not layer.folded:
        return ""
    others = (
        ("border kernel", layer.border),
        ("table and the bias", layer.table),
        ("gate and the bias", layer.gated),
    )
    place = next((place for place, used in others if used), "bias")
    return f"  {layer.folded} constants folded into the {place}"


def _attention(name: str, plan: AttentionPlan, width: int) -> str:
    outputs, inputs = f"{len(plan.kept_outputs)}/{plan.outputs}", f"{len(plan.kept_inputs)}/{plan.inputs}"
    rows = f"{len(plan.rows)}/{3 * plan.heads * plan.width} queries, keys and values"
    return f"{name:{width}}  {outputs:13}  {inputs}  {len(plan.kept_heads)}/{plan.heads} heads, {rows}"


Record = TypeVar(
    "Record", LayerPlan, AttentionPlan, Fill, Sum, Pick, Drop, Number, Overhang, Gating, Statics, Slice,
)  # fmt: skip


def _record(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """A flat record from JSON: lists become tuples; every field without a default must be there."""
    names = [f.name for f in fields(kind) if f.name in data or f.default is MISSING]
    values: dict[str, Any] = {name: data[name] for name in names}
    return kind(**{name: cast(Any, tuple(v) if isinstance(v, list) else v) for name, v in values.items()})

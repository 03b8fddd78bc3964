"""Edits of a graph: one frozen record per kind, with its tag, the nodes it names and its JSON.

Nodes are named as in the captured graph of the original. `snello.simplification.rewrite` has one
applier per kind. Edits are applied in the order of their `stage`, and within a stage in the order
of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .records import TaggedRecord


@dataclass(frozen=True)
class GraphEdit(TaggedRecord):
    """One change to a graph."""

    stage: ClassVar[int] = 0
    """Rank in the order of application: first changes of call arguments, then insertions, then
    replacements, then reads of nodes that earlier edits may have replaced."""

    inserts: ClassVar[str] = ""
    """Prefix of the name of the module that the edit inserts; empty if it inserts none."""

    @property
    def moves_channels(self) -> bool:
        """True if the edit adds an operation that copies channels by index."""
        return False

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes to which the edit refers."""
        raise NotImplementedError

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that the edit copies."""
        return ()

    def describe(self) -> str | None:
        """One line of the printed plan; None if the edit is not printed."""
        return None


@dataclass(frozen=True)
class SetNumber(GraphEdit):
    """A literal number in the lean graph.

    Attributes:
        node: the node that becomes a literal, or whose argument does.
        position: index of the size argument of a view that becomes a literal; -1 for the node
            itself.
        value: the number.
    """

    tag = "number"
    stage = 0

    node: str
    position: int
    value: int

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node,)


@dataclass(frozen=True)
class GateInput(GraphEdit):
    """A gate that a layer reads in addition to its input.

    Attributes:
        operand: the gate, of shape (N, C, 1, ...).
        reader: the layer's call.
    """

    tag = "gate"
    stage = 1

    operand: str
    reader: str

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.operand, self.reader)


@dataclass(frozen=True)
class Fill(GraphEdit):
    """A module inserted between `operand` and some of its readers.

    It appends absent channels and selects channels by index.

    Attributes:
        name: name of the inserted module.
        operand, readers: nodes.
        axis: axis of the channels.
        appended: number of absent channels that are appended; their values are the module's buffer
            `constant`.
        zero: whether all of those values are zero (then they are not stored).
        index: the present and appended channels that the readers receive, in order; None for all.
    """

    tag = "fill"
    stage = 2
    inserts = "fill"

    name: str
    operand: str
    readers: tuple[str, ...]
    axis: int
    appended: int
    zero: bool
    index: tuple[int, ...] | None

    @property
    def moves_channels(self) -> bool:
        return True

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.operand, *self.readers)

    def describe(self) -> str:
        return f"channels put in place: {self.operand} -> {', '.join(self.readers)}"


@dataclass(frozen=True)
class DropOperands(GraphEdit):
    """Removal of the operands of a concatenation that have no channel left.

    Attributes:
        node: the concatenation.
        positions: indices of the operands in its list.
    """

    tag = "drop"
    stage = 3

    node: str
    positions: tuple[int, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node,)


@dataclass(frozen=True)
class IndexedSum(GraphEdit):
    """A sum of two tensors that carry different channels.

    Attributes:
        name: name of the inserted module.
        node: the sum.
        base: position among the sum's arguments of the operand to which the other is added.
        axis: axis of the channels.
        grown: number of channels that are appended to the base before the addition.
        width: number of channels of the result.
        index: for each channel of the other operand, the channel of the result to which it is
            added; None if that operand has no channel left.
        constants: channels of the result to which a constant is added (the buffer `constant`).
        in_place: whether the base may be overwritten when no gradient is recorded.
    """

    tag = "sum"
    stage = 4
    inserts = "sum"

    name: str
    node: str
    base: int
    axis: int
    grown: int
    width: int
    index: tuple[int, ...] | None
    constants: tuple[int, ...]
    in_place: bool

    @property
    def moves_channels(self) -> bool:
        return True

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node,)

    def describe(self) -> str:
        return f"channels added by index: {self.node}"


@dataclass(frozen=True)
class Pick(GraphEdit):
    """A node (a slice, a chunk, a shuffle) replaced by some or all channels of an operand.

    Attributes:
        name: name of the inserted module.
        node, operand: nodes.
        axis: axis of the channels.
        index: positions of the channels in the lean operand; None for all of them, in order.
    """

    tag = "pick"
    stage = 5
    inserts = "pick"

    name: str
    node: str
    operand: str
    axis: int
    index: tuple[int, ...] | None

    @property
    def moves_channels(self) -> bool:
        return self.index is not None

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.operand, self.node)

    def describe(self) -> str | None:
        return None if self.index is None else f"channels picked: {self.operand} -> {self.node}"


@dataclass(frozen=True)
class Geometry:
    """Geometry of a convolution that pads with zeros, axis by axis.

    Attributes:
        kernel, stride, dilation: of the convolution.
        before, after: zero padding at either end of each axis.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def cut(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Largest number of taps that can be cut off, before and after, for each axis."""
        ends = (
            [-(-p // d) for p, d in zip(side, self.dilation, strict=True)]
            for side in (self.before, self.after)
        )
        before, after = map(tuple, ends)
        return before, after

    @property
    def is_partial(self) -> bool:
        """True if the padding never cuts off all taps on one side."""
        return all(max(ends) < kernel for kernel, *ends in zip(self.kernel, *self.cut, strict=True))


@dataclass(frozen=True)
class BorderPattern(Geometry, GraphEdit):
    """A node that returns the number of the border pattern at each position of a convolution.

    A layer with a `TableFold` reads it. See `borders` for the numbers.

    Attributes:
        name: name of the inserted module.
        operand: the node that the convolution reads; only its size is used.
        reader: the call of the layer that has the table.
    """

    tag = "overhang"
    stage = 6
    inserts = "overhang"

    name: str
    operand: str
    reader: str

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.operand, self.reader)


@dataclass(frozen=True)
class PositionDependent(Geometry, GraphEdit):
    """A node that computes, once per resolution, channels that depend on the position alone.

    These are channels of a map that a squeeze-and-excitation multiplies. The geometry is that of
    the padding convolution that computed them in the original.

    Attributes:
        name: name of the inserted module.
        operand: the node that the convolution reads; only its size is used.
        reader: the call of the layer that reads the gate.
        average, squeeze: the node that averages over the positions, and the layer that reads it.
        activations: names of the modules between the convolution and the product with the gate.
        channels: number of channels that depend on the position.
        constants: number of the leading channels of the gate, as the reader receives it, that
            multiply constants instead.
        averaged: channels whose averages are appended to those of the other channels.
    """

    tag = "static"
    stage = 7
    inserts = "static"

    name: str
    operand: str
    reader: str
    average: str
    squeeze: str
    activations: tuple[str, ...]
    channels: int
    constants: int
    averaged: tuple[int, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.operand, self.reader, self.average, self.squeeze)

    @property
    def modules(self) -> tuple[str, ...]:
        return self.activations

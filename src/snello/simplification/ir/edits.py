"""Edits of a graph: one frozen record per kind, with its tag, the nodes it names and its JSON.

Nodes are named as in the captured graph of the original. ``snello.simplification.rewrite`` has one
applier per kind. Edits are applied in the order of their ``stage``, within one stage in the order
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
    """Rank in the order of application: edits of call arguments, insertions, replacements, late reads."""

    inserts: ClassVar[str] = ""
    """Prefix of the name of the module that the edit inserts; empty if it inserts none."""

    @property
    def moves_channels(self) -> bool:
        """True if the edit adds an operation that moves channels about."""
        return False

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that the edit speaks of."""
        raise NotImplementedError

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that the edit copies."""
        return ()

    def describe(self) -> str | None:
        """One line for people; None for an edit that is not worth one."""
        return None


@dataclass(frozen=True)
class SetNumber(GraphEdit):
    """A literal number in the lean graph.

    Attributes:
        node: the node whose argument, or value, becomes a literal.
        position: index of the size argument of a view that becomes the literal; -1 for the node
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
    """A gate that a layer reads beside its input.

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
    """A module inserted behind ``operand``, for some of its readers, that appends and selects
    channels.

    Attributes:
        name: of the inserted module.
        operand, readers: nodes.
        axis: of the channels.
        appended: number of absent channels that are appended; the module's ``constant`` has their
            values.
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
    """Operands of a concatenation of which nothing is left, by position in its list."""

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
        name: of the inserted module.
        node: the sum.
        base: position among the sum's arguments of the operand that the other one is added to.
        axis: of the channels.
        grown: number of channels that are appended to the base before the addition.
        width: number of channels of the result.
        index: channel of the result that each channel of the other operand is added to; None if
            that operand has no channel at all.
        constants: channels of the result that a constant is added to (the module's ``constant``).
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
    """A node replaced by some channels of an operand (a slice, a chunk, a shuffle), or by all of
    it.

    Attributes:
        name: of the inserted module.
        node, operand: nodes.
        axis: of the channels.
        index: positions of the channels in the lean operand; None for all of them, as they are.
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
        """True if some tap stays inside at either end."""
        return all(max(ends) < kernel for kernel, *ends in zip(self.kernel, *self.cut, strict=True))


@dataclass(frozen=True)
class BorderPattern(Geometry, GraphEdit):
    """A node that gives, at each position, the way in which the kernel of a convolution overlaps
    the border.

    A layer with a :class:`TableFold` reads it.

    Attributes:
        name: of the inserted module.
        operand: the node that the convolution reads; its size decides.
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

    They stand before a squeeze-and-excitation. The geometry is that of the convolution that padded
    them.

    Attributes:
        name: of the inserted module.
        operand: the node that the convolution reads; its size decides.
        reader: the call of the layer that reads the gate.
        average, squeeze: the node that averages over the positions, and the layer that reads that.
        activations: names of the modules between convolution and gate.
        channels: number of channels.
        constants: number of channels of the gate, the first ones that the reader reads, that
            multiply constants instead.
        averaged: channels whose averages are appended to the others.
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

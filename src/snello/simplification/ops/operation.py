"""Base class of the rules of operations, and the values that rules exchange with the passes.

An operation is the rule of one node of the graph, with the nodes whose channels it reads. The
passes call its methods in this order; none of them changes anything:

- *propagate*: the signal of the output, from the signals of the operands;
- *live_inputs*: the input channels that are read, from the output channels that are read;
- *arrange*: from the channels that are present in each operand, the layouts that the operation
  needs (an adapter inserts missing channels) and the layout of its output;
- *lower*: the records of the plan for narrowing this node.

A node without an operation receives its inputs at full width; its output has no known channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from snello.graph import known_shape
from snello.simplification.ir.channels import Layout, Signal, same_order
from snello.simplification.ir.edits import Fill, GraphEdit
from snello.simplification.ir.folds import Fold
from snello.simplification.ir.plan import AttentionPlan, LayerPlan, Slice

Wanted = tuple[list[Layout], Layout]
"""Layouts wanted of the operands, and the layout of the output."""


@dataclass(frozen=True)
class Edit:
    """A graph edit with the values of the buffers of the module that it inserts.

    Attributes:
        record: the edit; its `name` is empty until the plan gives it one.
        values: name of a buffer -> float64 value.
    """

    record: GraphEdit
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def named(self, name: str) -> Edit:
        """The same edit with a name for the module that it inserts."""
        return replace(self, record=replace(self.record, name=name))  # type: ignore[call-arg]

    def read_by(self, readers: tuple[str, ...]) -> Edit:
        """The same adapter with other readers."""
        return replace(self, record=replace(self.record, readers=readers))  # type: ignore[call-arg]


@dataclass(frozen=True)
class FoldedIn:
    """A fold into a layer that a bypass has decided, not the rule of the layer.

    Attributes:
        record: the fold.
        constants: number of inputs that are folded.
        value: float64 value of the lean layer's buffer.
    """

    record: Fold
    constants: int
    value: Tensor


@dataclass(frozen=True)
class Lowered:
    """Records of the plan for one node.

    Attributes:
        layers, attentions, norms, parameters: as in the plan.
        edits: changes to the graph.
        values: key in the lean model's `state_dict` -> float64 value, where constants are folded.
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    attentions: Mapping[str, AttentionPlan] = field(default_factory=dict)
    norms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Final layouts around one node.

    Attributes:
        received, wanted: layouts of the operands before and after adapters.
        produced: layout of the output; an empty one if the output has no channels.
        overwritable: nodes whose memory a sum may overwrite.
        folds: folds of bypasses into the layer.
    """

    received: Sequence[Layout]
    wanted: Sequence[Layout]
    produced: Layout
    overwritable: frozenset[fx.Node] = frozenset()
    folds: tuple[FoldedIn, ...] = ()


@dataclass(frozen=True, eq=False)
class Operation:
    """The rule of one node.

    Attributes:
        node: the operation in the graph.
        operands: nodes whose channels it reads. They need not be arguments of `node`: a shuffle
            of three nodes is one operation at the last of them.
        axes: the axis of the channels in each operand.
        axis: the axis of the channels in the output; None if the output has none (sizes).
    """

    node: fx.Node
    operands: tuple[fx.Node, ...]
    axes: tuple[int, ...]
    axis: int | None

    produces: ClassVar[bool] = False
    """True if the operation decides which channels are present: a layer with neurons."""

    reads_shape_alone: ClassVar[bool] = False
    """True if the operation reads the shapes of its operands, but not their values."""

    accumulates: ClassVar[bool] = False
    """True if the operation adds one operand to another, see `base`: operands keep their layouts."""

    @property
    def steps(self) -> tuple[fx.Node, ...]:
        """Earlier nodes that are part of this operation: the first steps of a pattern."""
        return ()

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        """Operands whose channel c is read for channel c of the output alone."""
        return ()

    @property
    def is_step(self) -> bool:
        """True if each element of the output depends on the same element of one operand alone."""
        return False

    def map_values(self, values: Tensor) -> Tensor:
        """Map values of the operand to values of the output, if it `is_step`.

        Args:
            values: float64, shape (..., C).
        """
        raise NotImplementedError

    def propagate(self, *signals: Signal) -> Signal:
        """Return the signal of the output, given those of the operands."""
        raise NotImplementedError

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        """Return the channels of each operand that are read, given the useful ones of the output.

        Args:
            useful: boolean, shape (C of the output,).
            signal: signal of the output.
            signals: signals of the operands.

        Returns:
            For each operand, boolean, shape (C of the operand,).
        """
        raise NotImplementedError

    def sources(self, channels: Tensor) -> list[Tensor]:
        """Return the channels of each operand from which some channels of the output are computed.

        Unlike `live_inputs`, constants are not taken into account.

        Args:
            channels: boolean, shape (C of the output,).
        """
        return [channels] * len(self.operands)

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        """Return the layouts that the operands must have, and the layout of the output.

        Args:
            signal, useful: signal and useful channels of the output.
            received: layouts of the operands.
            forced: the neurons to keep, in order, instead of the live ones; None for these. Used
                only by operations that `produces`; the others ignore it.
        """
        raise NotImplementedError

    def lower(self, placement: Placement) -> Lowered:
        """Return the records of the plan; by default, the adapters that the operands need."""
        return Lowered(edits=self.adapters(placement))

    def base(self, received: Sequence[Layout]) -> int:
        """Return the position of the operand to which the other is added: see `accumulates`."""
        raise NotImplementedError

    def adapters(self, placement: Placement) -> tuple[Edit, ...]:
        """Adapters for the operands whose layout is not the wanted one."""
        found = []
        around = zip(self.operands, self.axes, placement.received, placement.wanted, strict=True)
        for operand, axis, has, wants in around:
            if not same_order(has, wants) and not wants.is_empty:
                found.append(adapter(operand, self.node, axis, has, wants))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Absorbed(Operation):
    """A node that is part of another node's operation, and has no channels and records itself."""

    @classmethod
    def of(cls, node: fx.Node) -> Absorbed:
        """Make the operation of a node."""
        return cls(node, (), (), None)

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return []

    def lower(self, placement: Placement) -> Lowered:
        return Lowered()


def adapter(operand: fx.Node, reader: fx.Node, axis: int, received: Layout, wanted: Layout) -> Edit:
    """Make the edit that changes the layout of an operand to the one that a reader needs."""
    missing = wanted.order[~received.present[wanted.order]]
    joined = torch.cat([received.order, missing])
    index = received.arranged(joined).positions()[wanted.order]
    constant = received.absent[missing]
    zero = not bool((constant != 0).any())
    record = Fill(
        name="", operand=operand.name, readers=(reader.name,), axis=axis, appended=len(missing),
        zero=zero, index=positions(index, len(joined)),
    )  # fmt: skip
    return Edit(record, {} if zero else {"constant": constant})


def positions(index: Tensor, available: int) -> tuple[int, ...] | None:
    """Positions to select; None if they are all of those available, in order."""
    everything = len(index) == available and torch.equal(index, torch.arange(available))
    return None if everything else tuple(index.tolist())


def signal_of(signals: Mapping[fx.Node, Signal], node: fx.Node, axis: int) -> Signal:
    """Signal of a node with channels on this axis; one without constants if none is known."""
    return signals.get(node) or Signal.live(known_shape(node)[axis])


def join(operation: Operation, useful: Tensor, received: Sequence[Layout]) -> Wanted:
    """Arrange operands that are combined channel by channel, all in the same layout.

    The layout has every channel that is present in any operand. A channel that is absent from all
    operands is computed from constants; it is inserted if it is useful and its result is not known
    to be constant.
    """
    base = max(received, key=lambda layout: len(layout.order))
    present = torch.stack([layout.present for layout in received]).any(0)
    known = operation.propagate(*(layout.absence for layout in received))
    order = base.extended(present | (useful & ~known.constant)).order
    absent = known.value.index_fill(0, order, 0)
    return [layout.arranged(order) for layout in received], Layout(order, absent)

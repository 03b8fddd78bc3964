"""Base class of the rules of operations, and the values that rules exchange with the passes.

An operation is one node of the graph bound to the tensors that it reads channel by channel. It
answers, in this order and without changing anything:

- *propagate*: the signal of the output, given the signals of the operands;
- *live_inputs*: the input channels that are read, given the output channels that are;
- *arrange*: given the channels that physically exist in each operand, the layouts that it wants
  there (an adapter supplies what is missing) and the layout of its output;
- *lower*: the records of the plan that narrowing means here.

A node without an operation gets its inputs at full width, and nothing is known of its output.
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
        record: the edit; its ``name`` is empty until the plan gives it one.
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
    """A fold for a layer, decided outside of its rule.

    Attributes:
        record: the fold.
        constants: number of inputs that are folded.
        value: float64, of the buffer that the lean layer keeps it in.
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
        values: key in the lean model's ``state_dict`` -> float64 value, for what is folded.
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    attentions: Mapping[str, AttentionPlan] = field(default_factory=dict)
    norms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Layouts around one node, once all are decided.

    Attributes:
        received, wanted: layouts of the operands as they come, and as the operation wants them.
        produced: layout of the output; of no channels where the output has none.
        overwritable: nodes whose memory a sum may overwrite.
        folds: what is folded into the layer from outside.
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
        operands: nodes whose channels it reads. Not always direct arguments: a shuffle of three
            steps is one operation at the last of them.
        axes: the axis of the channels in each operand.
        axis: the axis of the channels in the output; None if the output has none (sizes).
    """

    node: fx.Node
    operands: tuple[fx.Node, ...]
    axes: tuple[int, ...]
    axis: int | None

    produces: ClassVar[bool] = False
    """True if the operation decides which channels exist: a layer with neurons of its own."""

    reads_shape_alone: ClassVar[bool] = False
    """True if the operation reads the shape of its operands and none of their values."""

    accumulates: ClassVar[bool] = False
    """True if the operation adds one operand to another, see :meth:`base`: operands keep their layouts."""

    @property
    def steps(self) -> tuple[fx.Node, ...]:
        """Earlier nodes that this operation stands for, too: the first steps of a pattern."""
        return ()

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        """Operands whose channels are, one by one, the channels of the output."""
        return ()

    @property
    def is_step(self) -> bool:
        """True if each element of the output depends on the same element of one operand alone."""
        return False

    def map_values(self, values: Tensor) -> Tensor:
        """Map values of the operand to values of the output, if it :attr:`is_step`.

        Args:
            values: float64, shape (anything, C).
        """
        raise NotImplementedError

    def propagate(self, *signals: Signal) -> Signal:
        """Return the signal of the output, given those of the operands."""
        raise NotImplementedError

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        """Return the channels of each operand that are read, given the useful ones of the output.

        Args:
            useful: boolean, shape (C of the output,).
            signal: of the output.
            signals: of the operands.
        """
        raise NotImplementedError

    def sources(self, channels: Tensor) -> list[Tensor]:
        """Return the channels of each operand that some channels of the output are made of.

        Args:
            channels: boolean, shape (C of the output,); their values do not matter.
        """
        return [channels] * len(self.operands)

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        """Return the layouts wanted of the operands, and the layout of the output.

        Args:
            signal, useful: of the output.
            received: layouts of the operands.
            forced: for an operation that produces: all neurons that it must keep, in order, instead
                of the live ones.
        """
        raise NotImplementedError

    def lower(self, placement: Placement) -> Lowered:
        """Return the records of the plan. By default: an adapter for each operand that needs
        one.
        """
        return Lowered(edits=self.adapters(placement))

    def base(self, received: Sequence[Layout]) -> int:
        """Return the position of the operand that the other one is added to, if it
        :attr:`accumulates`.
        """
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
    """A node that another node's operation stands for: it reads nothing and needs no record."""

    @classmethod
    def of(cls, node: fx.Node) -> Absorbed:
        """Make the operation of a node that has no operands of its own."""
        return cls(node, (), (), None)

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return []

    def lower(self, placement: Placement) -> Lowered:
        return Lowered()


def adapter(operand: fx.Node, reader: fx.Node, axis: int, received: Layout, wanted: Layout) -> Edit:
    """Make the edit that brings an operand into the layout that a reader wants."""
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
    """Signal of a node's channels on an axis: without constants where none is known."""
    return signals.get(node) or Signal.live(known_shape(node)[axis])


def join(operation: Operation, useful: Tensor, received: Sequence[Layout]) -> Wanted:
    """Arrange operands that meet channel by channel: in one order, with the channels of all of
    them.

    A channel that all of them lack is computed from constants; it must exist from here on where the
    result is no constant.
    """
    base = max(received, key=lambda layout: len(layout.order))
    present = torch.stack([layout.present for layout in received]).any(0)
    known = operation.propagate(*(layout.absence for layout in received))
    order = base.extended(present | (useful & ~known.constant)).order
    absent = known.value.index_fill(0, order, 0)
    return [layout.arranged(order) for layout in received], Layout(order, absent)

"""Sums of two tensors with different channels present."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from snello.simplification.ir.channels import Layout, Signal, same_order
from snello.simplification.ir.edits import IndexedSum

from .call import Call, sizes
from .elementwise import operands_of
from .operation import Edit, Lowered, Operation, Placement, Wanted, join
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """The sum of two tensors of one shape, which may have different channels in the lean network.

    Absent channels are not inserted before the sum; the present channels of one operand are added
    to the other by index (`IndexedSum`).
    """

    accumulates: ClassVar[bool] = True

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        return self.operands

    def propagate(self, *signals: Signal) -> Signal:
        a, b = signals
        return Signal.of(a.constant & b.constant, a.value + b.value)

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful, useful]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        return list(received), join(self, useful, received)[1]

    def base(self, received: Sequence[Layout]) -> int:
        return wider(*received)

    def lower(self, placement: Placement) -> Lowered:
        a, b = placement.received
        produced = placement.produced
        constants = (a.absent + b.absent)[produced.order]
        if produced.is_empty or (same_order(a, b) and not bool((constants != 0).any())):
            return Lowered()
        assert self.axis is not None
        base = self.base((a, b))
        in_place = self.operands[base] in placement.overwritable
        return Lowered(edits=(indexed_sum(self.node, self.axis, base, (a, b), produced, in_place),))


def wider(first: Layout, second: Layout) -> int:
    """Return the position (0 or 1) of the layout with more channels: the other is added to it."""
    return int(len(second.order) > len(first.order))


def indexed_sum(
    node: fx.Node,
    axis: int,
    base: int,
    layouts: tuple[Layout, Layout],
    produced: Layout,
    in_place: bool,
) -> Edit:
    """Make the edit of a sum of two operands with different channels.

    Args:
        node: the sum.
        axis: axis of the channels.
        base: position (0 or 1) of the operand to which the other is added.
        layouts: layouts of the operands.
        produced: layout of the sum.
        in_place: whether the base may be overwritten.
    """
    receiver, other = layouts[base], layouts[1 - base]
    # A channel of the result is present in at least one operand, so that at most one constant is
    # added to it.
    constant = (receiver.absent + other.absent)[produced.order]
    where = (constant != 0).nonzero().flatten()
    index = produced.positions()[other.order]
    record = IndexedSum(
        name="", node=node.name, base=base, axis=axis,
        grown=len(produced.order) - len(receiver.order), width=len(produced.order),
        index=tuple(index.tolist()) if len(index) else None,
        constants=tuple(where.tolist()), in_place=in_place,
    )  # fmt: skip
    return Edit(record, {"constant": constant[where]} if len(where) else {})


# Imported after elementwise.py and therefore registered later: the latest rule is tried first.
@rule_for(operator.add, operator.iadd, torch.add, "add", "add_")
def addition(call: Call) -> Operation | None:
    """`a + b` of two tensors of one shape; other sums are elementwise operations."""
    args = call.node.args
    if call.node.kwargs or len(args) != 2 or not all(isinstance(a, fx.Node) for a in args):
        return None
    found = operands_of(call)
    if found is None or not found.alone or any(sizes(a) != call.shape for a in found.operands):
        return None
    first, second = args
    return Add(call.node, (first, second), (found.axis, found.axis), found.axis)  # type: ignore[arg-type]

"""Concatenation, and `expand_as`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import DropOperands

from .call import Call, sizes
from .operation import Edit, Lowered, Operation, Placement, Wanted, join
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class Concat(Operation):
    """Concatenation along the channels: the layouts are concatenated.

    Attributes:
        widths: number of channels of each operand in the original.
    """

    widths: list[int]

    def propagate(self, *signals: Signal) -> Signal:
        constant = torch.cat([s.constant for s in signals])
        return Signal(constant, torch.cat([s.value for s in signals]))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return list(torch.split(channels, self.widths))

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        starts = torch.tensor([0, *(layout.width for layout in received)]).cumsum(0)
        order = torch.cat([start + x.order for start, x in zip(starts, received, strict=False)])
        return list(received), Layout(order, torch.cat([layout.absent for layout in received]))

    def lower(self, placement: Placement) -> Lowered:
        empty = tuple(i for i, layout in enumerate(placement.received) if layout.is_empty)
        if not empty or placement.produced.is_empty:
            return Lowered()
        return Lowered(edits=(Edit(DropOperands(self.node.name, empty)),))


@dataclass(frozen=True, eq=False)
class SharedChannels(Operation):
    """Concatenation along another axis: all operands need the same channels in the same order."""

    def propagate(self, *signals: Signal) -> Signal:
        first = signals[0].value
        same = torch.stack([s.constant & (s.value == first) for s in signals]).all(0)
        return Signal(same, first.masked_fill(~same, 0))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful] * len(signals)

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        return join(self, useful, received)


@rule_for(torch.cat, torch.concat, torch.concatenate)
def concatenation(call: Call) -> Operation | None:
    """Concatenation along the channels, or along another axis."""
    tensors, dim = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    shape = call.shape
    if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int) or shape is None:
        return None
    # torch ignores empty tensors of shape (0,), with which caches are initialised.
    tensors = [a for a in tensors if not isinstance(a, fx.Node) or sizes(a) != (0,)]
    if not all(isinstance(a, fx.Node) and len(sizes(a)) == len(shape) for a in tensors):
        return None
    found = {call.axes[a] for a in tensors if a in call.axes}
    if len(found) != 1:
        return None
    axis = found.pop()
    operands: tuple[fx.Node, ...] = tuple(tensors)
    own = (call.node, operands, (axis,) * len(operands), axis)
    if dim % len(shape) == axis:
        return Concat(*own, [sizes(a)[axis] for a in operands])
    return SharedChannels(*own)


@rule_for(torch.stack)
def stack(call: Call) -> Operation | None:
    """`torch.stack` of tensors that have their channels on one axis."""
    tensors, dim = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    shape = call.shape
    if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int) or shape is None:
        return None
    found = {call.axes.get(a) for a in tensors}
    axis = found.pop()
    if found or axis is None:
        return None
    out = axis + (dim % len(shape) <= axis)
    return SharedChannels(call.node, tuple(tensors), (axis,) * len(tensors), out)


@dataclass(frozen=True, eq=False)
class ExpandAs(SharedChannels):
    """`y.expand_as(x)`, which reads the values of y and only the shape of x."""

    def propagate(self, *signals: Signal) -> Signal:
        return signals[0]

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful, torch.zeros_like(useful)]


@rule_for("expand_as")
def expand_as(call: Call) -> Operation | None:
    """`y.expand_as(x)` where both have their channels on the same axis."""
    moving, out = call.moving_operand(), call.shape
    if moving is None or out is None:
        return None
    operand, axis = moving
    shape, model = sizes(operand), call.node.args[1]
    if len(shape) != len(out) or shape[axis] != out[axis]:
        return None
    if not isinstance(model, fx.Node) or call.axes.get(model, axis) != axis:
        return None
    return ExpandAs(call.node, (operand, model), (axis, axis), axis)

"""Views that split the channel axis, for heads of attention or to make an image of features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import SetNumber

from .call import Call, sizes
from .operation import Edit, Lowered, Operation, Placement, Wanted
from .registry import rule_for
from .views import VIEWS, size_argument, sizes_are_written_out


@dataclass(frozen=True, eq=False)
class SplitChannels(Operation):
    """A view of C channels as (before, K, after): the K groups are the channels of the output.

    Attributes:
        before, after: sizes of the split before and after the axis of groups.
        argument: position of the size argument that is K; None if K is not written.
    """

    before: int
    after: int
    argument: int | None

    def _groups(self, channels: Tensor) -> Tensor:
        """Values of the operand's channels by group: shape (K, members)."""
        split = channels.reshape(self.before, -1, self.after)
        return split.transpose(0, 1).flatten(1)

    def _members(self, groups: Tensor, width: int) -> Tensor:
        """Indices of the operand's channels in some groups, in the order of the operand."""
        return torch.arange(width).reshape(self.before, -1, self.after)[:, groups].flatten()

    def _spread(self, per_group: Tensor) -> Tensor:
        return per_group[None, :, None].expand(self.before, -1, self.after).flatten()

    def propagate(self, *signals: Signal) -> Signal:
        constant, value = self._groups(signals[0].constant), self._groups(signals[0].value)
        same = constant.all(1) & (value == value[:, :1]).all(1)
        return Signal.of(same, value[:, 0])

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [self._spread(useful & ~signal.constant)]

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [self._spread(channels)]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        known = self.propagate(layout.absence)
        needed = self._groups(layout.present).any(1) | (useful & ~known.constant)
        order = needed.nonzero().flatten()
        wanted = layout.arranged(self._members(order, layout.width))
        return [wanted], Layout(order, known.value.index_fill(0, order, 0))

    def lower(self, placement: Placement) -> Lowered:
        produced, edits = placement.produced, self.adapters(placement)
        if self.argument is not None and len(produced.order) < produced.width:
            record = SetNumber(self.node.name, self.argument, len(produced.order))
            edits = (*edits, Edit(record))
        return Lowered(edits=edits)


@rule_for(*VIEWS)
def split(call: Call) -> Operation | None:
    """Views that split the channel axis into several; `Call.split_axis` selects one."""
    moving, after = call.moving_operand(), call.shape
    if moving is None or after is None or not sizes_are_written_out(call.node):
        return None
    operand, axis = moving
    before = sizes(operand)
    found = next(_parts(before, after, axis), None)
    if found is None:
        return None
    first, last = found
    # Channels that were merged with the batch come behind it again.
    chosen = min(first + call.split_axis(last - first), last - 1) if first else last - 1
    own = math.prod(after[first:chosen]), math.prod(after[chosen + 1 : last])
    return SplitChannels(
        call.node, (operand,), (axis,), chosen, *own, argument=size_argument(call.node, chosen)
    )


@rule_for(nn.PixelShuffle, F.pixel_shuffle)
def pixel_shuffle(call: Call) -> Operation | None:
    """Depth to space: channels that follow each other become the positions of one.

    Source: Shi et al., Real-Time Single Image Super-Resolution, CVPR 2016.
    """
    operand, out = call.known_operand(1), call.shape
    if operand is None or out is None or len(out) != 4:
        return None
    members = sizes(operand)[1] // out[1]
    return SplitChannels(call.node, (operand,), (1,), 1, 1, members, None)


def _parts(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> Iterator[tuple[int, int]]:
    """Ranges of axes of the output into which the channel axis is split, with all others kept."""
    start = math.prod(before[:axis])
    for first in range(0 if axis == 0 else 1, len(after)):
        if math.prod(after[:first]) != start:
            continue
        for last in range(first + 2, len(after) + 1):
            rest = math.prod(after[last:]) == math.prod(before[axis + 1 :])
            if math.prod(after[first:last]) == before[axis] and rest and min(after[first:last]) > 1:
                yield first, last

"""Channels selected by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snello.simplification.ops.call import Call
from snello.simplification.ops.operation import Operation
from snello.simplification.ops.registry import rule_for

from .constants import index_tensor
from .gathered import Gathered


class ChannelPick(nn.Module):
    """Select channels by index; the output is a view if the channels are consecutive.

    Args:
        axis: axis of the channels.
        index: positions of the channels in the input.
    """

    snello_leaf = True
    index: Tensor | None

    def __init__(self, axis: int, index: Sequence[int]) -> None:
        super().__init__()
        self.axis, self.start, self.length = axis, index[0], len(index)
        run = list(index) == list(range(index[0], index[0] + len(index)))
        self.register_buffer("index", None if run else index_tensor(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.index is None:
            return x.narrow(self.axis, self.start, self.length)
        return x.index_select(self.axis, self.index)


@rule_for(ChannelPick)
def channel_pick(call: Call) -> Operation | None:
    """Picks of an earlier simplification."""
    module = call.module
    assert isinstance(module, ChannelPick)
    operand = call.known_operand(module.axis)
    if operand is None:
        return None
    run = torch.arange(module.start, module.start + module.length)
    index = run if module.index is None else module.index.cpu()
    own = (call.node, (operand,), (module.axis,), module.axis)
    return Gathered(*own, torch.zeros(0, dtype=torch.float64), index)

"""Channels appended as constants and selected by index."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snello.graph import known_shape
from snello.simplification.ir.edits import Fill
from snello.simplification.ops.call import Call
from snello.simplification.ops.operation import Operation
from snello.simplification.ops.registry import rule_for

from .constants import along, index_tensor
from .gathered import Gathered


class ChannelFill(nn.Module):
    """Append constant channels, then select channels by index.

    Args:
        edit: the channels to append and to select. Constants other than zero are the buffer
            `constant`.

    Shape: only the size of `edit.axis` changes.
    """

    snello_leaf = True
    constant: Tensor | None
    index: Tensor | None

    def __init__(self, edit: Fill) -> None:
        super().__init__()
        self.axis, self.appended = edit.axis, edit.appended
        self.register_buffer("constant", None if edit.zero else torch.zeros(edit.appended))
        self.register_buffer("index", index_tensor(edit.index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.appended:
            sizes = [*x.shape[: self.axis], self.appended, *x.shape[self.axis + 1 :]]
            constant = x.new_zeros(1) if self.constant is None else self.constant
            x = torch.cat([x, along(constant, x, self.axis).expand(sizes)], self.axis)
        return x if self.index is None else x.index_select(self.axis, self.index)


@rule_for(ChannelFill)
def channel_fill(call: Call) -> Operation | None:
    """Fills of an earlier simplification."""
    module = call.module
    assert isinstance(module, ChannelFill)
    operand = call.known_operand(module.axis)
    if operand is None:
        return None
    channels = known_shape(operand)[module.axis]
    everything = torch.arange(channels + module.appended)
    index = everything if module.index is None else module.index.cpu()
    if not (index < channels).any():
        return None  # every output channel is a constant; only the shape of the operand is read
    zeros = torch.zeros(module.appended)
    constants = zeros if module.constant is None else module.constant.detach().cpu()
    own = (call.node, (operand,), (module.axis,), module.axis)
    return Gathered(*own, constants.double(), index)

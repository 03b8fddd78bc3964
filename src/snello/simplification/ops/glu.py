"""Gated linear units: one half of the channels times the sigmoid of the other half."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.simplification.ir.channels import Layout, Signal

from .call import Call
from .channelwise import PerChannel
from .operation import Operation, Wanted
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class GatedLinearUnit(Operation):
    """`a * sigmoid(b)` with a, b the first and the second half of the operand's channels.

    Source: Dauphin et al., Language Modeling with Gated Convolutional Networks, ICML 2017.
    """

    def propagate(self, *signals: Signal) -> Signal:
        (signal,) = signals
        a, b = signal.value.chunk(2)
        fixed_a, fixed_b = signal.constant.chunk(2)
        zero = fixed_a & (a == 0)
        return Signal.of(zero | (fixed_a & fixed_b), torch.where(zero, 0, a * torch.sigmoid(b)))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        # The gate of a channel that is zero is not needed.
        zero, _ = signals[0].zero.chunk(2)
        return [torch.cat([useful, useful & ~zero])]

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [torch.cat([channels, channels])]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        # Both halves need the same channels in the same order: a channel that is present in only
        # one half is inserted in the other.
        (layout,) = received
        half = layout.width // 2
        first, second = layout.present.chunk(2)
        known = self.propagate(layout.absence)
        needed = (first | second | useful) & ~known.constant
        own = layout.order[layout.order < half]
        missing = (needed & ~first).nonzero().flatten()
        order = torch.cat([own[needed[own]], missing])
        wanted = layout.arranged(torch.cat([order, order + half]))
        return [wanted], Layout(order, known.value.index_fill(0, order, 0))


@rule_for(nn.GLU, F.glu)
def gated_linear_unit(call: Call) -> Operation | None:
    """`nn.GLU` and `F.glu` over the channels, or over another axis."""
    moving, module = call.moving_operand(), call.module
    dim = call.argument(1, "dim", -1) if module is None else module.dim
    if moving is None or call.shape is None or not isinstance(dim, int):
        return None
    operand, axis = moving
    if dim % len(call.shape) != axis:
        return PerChannel.of(call, operand, function=lambda value: value * torch.sigmoid(value))
    return GatedLinearUnit(call.node, (operand,), (axis,), axis)

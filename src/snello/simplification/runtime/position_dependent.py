"""Channels that depend on the position alone, before a squeeze-and-excitation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import known_shape
from snello.simplification.ir.borders import taps_inside
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import PositionDependent
from snello.simplification.ops.call import Call
from snello.simplification.ops.operation import Operation, Wanted
from snello.simplification.ops.registry import rule_for
from snello.simplification.ops.views import Sizes

from .border_pattern import BorderPatterns
from .constants import CachedConstant, along

Computed = tuple[Tensor, Tensor, Tensor]
"""The result of `PositionDependentChannels`."""


class PositionDependentChannels(CachedConstant):
    """Channels that depend on the position alone, computed once per resolution.

    The buffer `taps`, shape (C, kernel positions + 1), has the contribution of each position of
    the kernel and, in its last column, the bias.

    Args:
        edit: the edit, with the geometry of the padding convolution.
        activation: the modules between the convolution and the product with the gate.

    Returns:
        Three tensors: the values of each channel for the border patterns that occur, shape
        (constants + C, patterns), ones for constants; 1 where a position has a pattern, else 0,
        shape (patterns, positions); the averages to append, shape (averaged,).
    """

    snello_leaf = True
    taps: Tensor
    inside: Tensor
    averaged: Tensor

    def __init__(self, edit: PositionDependent, activation: nn.Module) -> None:
        super().__init__()
        self.constants = edit.constants
        self.patterns, self.activation = BorderPatterns(edit), activation
        inside = taps_inside(edit)
        inside = torch.cat([inside, torch.ones(len(inside), 1)], 1)
        self.register_buffer("taps", torch.zeros(edit.channels, inside.shape[1]))
        self.register_buffer("inside", inside, persistent=False)
        averaged = torch.tensor(edit.averaged, dtype=torch.long)
        self.register_buffer("averaged", averaged, persistent=False)

    def forward(self, x: Tensor) -> Computed:
        return self.cached((x.shape[2:], x.device), self.taps, lambda: self._compute(x))

    def _compute(self, x: Tensor) -> Computed:
        patterns = self.patterns.patterns(x).flatten()
        used = self._used(patterns, x)
        values: Tensor = self.activation(self.taps @ self.inside[used].T)
        # Selection by a product with zeros and ones takes a tenth of the time of indexing.
        where = (patterns == used[:, None]).to(values.dtype)
        means = (values @ where.mean(1))[self.averaged]
        return torch.cat([values.new_ones(self.constants, len(used)), values]), where, means

    def _used(self, patterns: Tensor, x: Tensor) -> Tensor:
        """The patterns that occur at this size, usually few; all patterns if sizes are symbolic."""
        if not torch.compiler.is_compiling():
            return patterns.unique()  # type: ignore[no-untyped-call, no-any-return]
        # Under Dynamo, a test of a size would specialise the compiled graph to it.
        known = not torch.compiler.is_dynamo_compiling()
        if known and all(isinstance(size, int) for size in x.shape[2:]):
            return torch.tensor(self.patterns.occurring(x.shape[2:]), device=x.device)
        return torch.arange(len(self.inside), device=x.device)


class AppendedMeans(nn.Module):
    """Append the averages of channels that are not computed to those of the others.

    Shape: (N, C, 1, ...) to (N, C + averaged, 1, ...).
    """

    snello_leaf = True

    def forward(self, x: Tensor, static: Computed) -> Tensor:
        means = along(static[2], x, 1)
        if torch.compiler.is_exporting():  # fewer operations if the batch size is symbolic
            sides = (0, 0) * (x.dim() - 2)
            return F.pad(x, (*sides, 0, len(means))) + F.pad(means, (*sides, x.shape[1], 0))
        return torch.cat([x, means.expand(x.shape[0], -1, *x.shape[2:])], 1)


@dataclass(frozen=True, eq=False)
class Appended(Operation):
    """Channels appended to those of the operand, which are always present.

    Attributes:
        count: number of appended channels.
    """

    count: int

    def propagate(self, *signals: Signal) -> Signal:
        own, more = signals[0], Signal.live(self.count)
        return Signal(torch.cat([own.constant, more.constant]), torch.cat([own.value, more.value]))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels[: len(channels) - self.count]]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        order = torch.cat([layout.order, layout.width + torch.arange(self.count)])
        return [layout], Layout(
            order, torch.cat([layout.absent, layout.absent.new_zeros(self.count)])
        )


@rule_for(PositionDependentChannels)
def position_dependent_channels(call: Call) -> Operation | None:
    """Channels of an earlier simplification, which only read the size of their operand."""
    operand = call.node.args[0]
    if not isinstance(operand, fx.Node) or call.axes.get(operand) != 1:
        return None
    return Sizes(call.node, (operand,), (1,), None)


@rule_for(AppendedMeans)
def appended_means(call: Call) -> Operation | None:
    """Averages appended by an earlier simplification."""
    operand = call.known_operand(1)
    if operand is None:
        return None
    count = known_shape(call.node)[1] - known_shape(operand)[1]
    return Appended(call.node, (operand,), (1,), 1, count)

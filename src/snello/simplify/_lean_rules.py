"""The rules of operations that an earlier simplification has put into a graph: a lean model is simplified again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from snello.graph import known_shape, shape_of

from ._draft import Draft
from ._lean_gate import AppendedMeans, StaticChannels
from ._lean_position import Overhangs
from ._primitives import ChannelFill, ChannelPick, ChannelSum
from ._rule import Rule, Wanted
from ._signal import Layout, Signal
from ._structure import Sizes

INSERTED = (ChannelFill, ChannelPick, ChannelSum, Overhangs, StaticChannels, AppendedMeans)
"""The modules that :func:`rule` knows."""


@dataclass(frozen=True, eq=False)
class Placed(Rule):
    """Channels of the operand and constants, in some order: a fill or a pick. Readers place them anew.

    Attributes:
        constants: float64, shape (appended,).
        source: for each channel of the output the one of the operand and the constants, in that order, that it is.
    """

    constants: Tensor
    source: Tensor

    def _from(self, operand: Tensor, constants: Tensor) -> Tensor:
        return torch.cat([operand, constants])[self.source]

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        constant = self._from(signal.constant, torch.ones(len(self.constants), dtype=torch.bool))
        return Signal(constant, self._from(signal.value, self.constants))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        read = torch.zeros(
            known_shape(self.operands[0])[self.axes[0]] + len(self.constants), dtype=torch.bool
        )
        read[self.source[channels]] = True
        return [read[: len(read) - len(self.constants)]]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        (layout,) = received
        positions = self._positions(layout)
        order = torch.argsort(positions, stable=True)
        return [layout], Layout(order[positions[order] >= 0], self._from(layout.fill, self.constants))

    def _positions(self, layout: Layout) -> Tensor:
        """Of each channel of the output in the lean operand, or -1."""
        return self._from(layout.positions(), torch.full((len(self.constants),), -1))

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        (layout,) = received
        if len(produced.order):
            index = self._positions(layout)[produced.order]
            draft.pick(self.node, self.operands[0], self.axes[0], index, len(layout.order))


@dataclass(frozen=True, eq=False)
class Summed(Rule):
    """A sum of two tensors that carry different channels, or of one and constants.

    Attributes:
        index: channel of the output that each channel of the second operand is added to; empty without one.
        constants: float64, shape (channels of the output,): what is added besides.
        in_place: whether the first operand may be overwritten.
    """

    index: Tensor
    constants: Tensor
    in_place: bool

    def _spread(self, first: Tensor, second: Tensor | None = None, *, absent: float) -> tuple[Tensor, Tensor]:
        """Values of both operands by channels of the output."""
        a, b = (torch.full((len(self.constants),), absent, dtype=first.dtype) for _ in range(2))
        a[: len(first)] = first
        if second is not None:
            b[self.index] = second
        return a, b

    def forward(self, *signals: Signal) -> Signal:
        constant = self._spread(*(s.constant for s in signals), absent=True)
        value = self._spread(*(s.value for s in signals), absent=0)
        return Signal.of(constant[0] & constant[1], value[0] + value[1] + self.constants)

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        first = known_shape(self.operands[0])[self.axes[0]]
        return [channels[:first], channels[self.index]][: len(self.operands)]

    def _by_output(self, received: Sequence[Layout]) -> tuple[Layout, Layout]:
        """The operands' layouts by channels of the output."""
        fills = self._spread(*(layout.fill for layout in received), absent=0)
        added = self.index[received[1].order] if len(received) > 1 else self.index
        return Layout(received[0].order, fills[0]), Layout(added, fills[1])

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        first, second = self._by_output(received)
        base, other = (second, first) if len(second.order) > len(first.order) else (first, second)
        order = base.extended(other.present).order
        fill = first.fill + second.fill + self.constants
        return list(received), Layout(order, fill.index_fill(0, order, 0))

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        if not len(produced.order):
            return
        first, second = self._by_output(received)
        base = int(len(second.order) > len(first.order))
        first = Layout(first.order, first.fill + self.constants)
        assert self.axis is not None
        in_place = self.in_place and base == 0
        draft.sum(self.node, self.axis, base, (first, second), produced, in_place=in_place)


@dataclass(frozen=True, eq=False)
class Appended(Rule):
    """Channels that are there, behind those of the operand.

    Attributes:
        count: how many.
    """

    count: int

    def forward(self, *signals: Signal) -> Signal:
        own, more = signals[0], Signal.live(self.count)
        return Signal(torch.cat([own.constant, more.constant]), torch.cat([own.value, more.value]))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels[: len(channels) - self.count]]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        (layout,) = received
        order = torch.cat([layout.order, layout.width + torch.arange(self.count)])
        return [layout], Layout(order, torch.cat([layout.fill, layout.fill.new_zeros(self.count)]))


def rule(node: fx.Node, module: nn.Module, axes: Mapping[fx.Node, int]) -> Rule | None:
    """The rule of an operation that simplification has inserted; None where its operands' channels are not known."""
    operand, axis = node.args[0], getattr(module, "axis", 1)
    if not isinstance(operand, fx.Node) or axes.get(operand) != axis:
        return None
    own = (node, (operand,), (axis,), axis)
    if isinstance(module, (Overhangs, StaticChannels)):
        return Sizes(node, (operand,), (1,), None)
    channels = known_shape(operand)[axis]
    if isinstance(module, AppendedMeans):
        return Appended(*own, known_shape(node)[1] - channels)
    if isinstance(module, ChannelSum):
        return _summed(node, module, axes)
    nothing = torch.zeros(0, dtype=torch.float64)
    if isinstance(module, ChannelPick):
        run = torch.arange(module.start, module.start + module.length)
        return Placed(*own, nothing, run if module.index is None else module.index.cpu())
    if isinstance(module, ChannelFill):
        constants = nothing.new_zeros(module.appended) if module.constant is None else module.constant
        index = torch.arange(channels + module.appended) if module.index is None else module.index.cpu()
        if not (index < channels).any():
            return None  # the operand gives its shape alone
        return Placed(*own, constants.detach().cpu().double(), index)
    return None


def _summed(node: fx.Node, module: ChannelSum, axes: Mapping[fx.Node, int]) -> Summed | None:
    operands = tuple(a for a in node.args if isinstance(a, fx.Node))
    if any(axes.get(a, module.axis) != module.axis or shape_of(a) is None for a in operands):
        return None
    constants = torch.zeros(module.width, dtype=torch.float64)
    if module.constant is not None and module.where is not None:
        constants[module.where.cpu()] = module.constant.detach().cpu().double()
    index = torch.zeros(0, dtype=torch.long) if module.index is None else module.index.cpu()
    own_axes = (module.axis,) * len(operands)
    return Summed(node, operands, own_axes, module.axis, index, constants, module.in_place)

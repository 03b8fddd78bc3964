"""What a rule is, and the rules of operations that have no weights.

A rule knows one kind of operation. It answers, in this order:

- *forward*: what is known of the output's channels, given what is known of the inputs';
- *reads*: which input channels are read, given the output channels that are;
- *arrange*: given the channels that physically exist in each input, which ones it wants there (an adapter
  supplies what is missing) and which ones its output then has;
- *emit*: what that means for the plan.

An operation without a rule gets its inputs at full width, and nothing is known of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snello.graph import known_shape

from ._draft import Draft
from ._signal import Layout, Signal, same_order

Wanted = tuple[list[Layout], Layout]
"""The layouts that a rule wants of its operands, and the layout of its output."""


@dataclass(frozen=True, eq=False)
class Rule:
    """One operation of the graph, bound to the tensors that it reads channel by channel.

    Attributes:
        node: the operation.
        operands: nodes whose channels it reads. Not always direct arguments: a shuffle of three steps is one
            rule at the last of them.
        axes: the axis of the channels in each operand.
        axis: the axis of the channels in the output; None if the output has none (sizes).
    """

    node: fx.Node
    operands: tuple[fx.Node, ...]
    axes: tuple[int, ...]
    axis: int | None

    def forward(self, *signals: Signal) -> Signal:
        """The signal of the output."""
        raise NotImplementedError

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        """Which channels of each operand are read, given the useful ones of the output.

        Args:
            useful: boolean, shape (C of the output,).
            signal: of the output.
            signals: of the operands.
        """
        raise NotImplementedError

    def sources(self, channels: Tensor) -> list[Tensor]:
        """Which channels of each operand some channels of the output are made of, whatever their values.

        Args:
            channels: boolean, shape (C of the output,).
        """
        return [channels] * len(self.operands)

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        """Layouts wanted of the operands, and the layout of the output."""
        raise NotImplementedError

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        """Write into the plan what narrowing means here. By default: adapters where an operand needs one."""
        for operand, axis, has, wants in zip(self.operands, self.axes, received, wanted, strict=True):
            if not same_order(has, wants) and len(wants.order):
                draft.fill(operand, self.node, axis, has, wants)


def signal_of(signals: Mapping[fx.Node, Signal], node: fx.Node, axis: int) -> Signal:
    """What is known of a node's channels on an axis: nothing, where it has no signal."""
    return signals.get(node) or Signal.live(known_shape(node)[axis])


def join(rule: Rule, useful: Tensor, received: Sequence[Layout]) -> Wanted:
    """Operands that meet channel by channel: in one order, and with whatever any of them has.

    What all of them lack is what constants make of it; it must exist from here on where that is no constant.
    """
    base = max(received, key=lambda layout: len(layout.order))
    present = torch.stack([layout.present for layout in received]).any(0)
    known = rule.forward(*(layout.absence for layout in received))
    order = base.extended(present | (useful & ~known.constant)).order
    return [layout.arranged(order) for layout in received], Layout(order, known.value.index_fill(0, order, 0))


@dataclass(frozen=True, eq=False)
class PerChannel(Rule):
    """One operand, and each channel of the output depends on the same channel of it alone.

    Attributes:
        function: maps constants, float64 of shape (C,); None for the identity.
        only: a constant stays one only if it has this value (zero padding keeps zeros alone); None for any.
        pointwise: whether each position of the output depends on the same position alone. Then the function
            also maps values of shape (anything, C).
    """

    function: Callable[[Tensor], Tensor] | None = None
    only: float | None = None
    pointwise: bool = False

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        constant = signal.constant if self.only is None else signal.constant & (signal.value == self.only)
        return Signal.of(constant, signal.value if self.function is None else self.function(signal.value))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        return join(self, useful, received)


@dataclass(frozen=True, eq=False)
class View(PerChannel):
    """A view that keeps the channel axis whole, or merges it with others; its literal sizes are rewritten.

    Attributes:
        before, after: how many positions on axes before and after the channels are merged with them.
        argument: which size argument counts the channels; None where none does (flatten).
    """

    before: int = 1
    after: int = 1
    argument: int | None = None

    def _merge(self, index: Tensor, channels: int) -> Tensor:
        """Original indices of the merged features, for channels in physical order."""
        before, after = torch.arange(self.before), torch.arange(self.after)
        return ((before[:, None, None] * channels + index[None, :, None]) * self.after + after).flatten()

    def _spread(self, per_channel: Tensor) -> Tensor:
        return per_channel[None, :, None].expand(self.before, -1, self.after).flatten()

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        return Signal(self._spread(signal.constant), self._spread(signal.value))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels.reshape(self.before, -1, self.after).any(2).any(0)]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        (layout,) = received
        return [layout], Layout(self._merge(layout.order, layout.width), self._spread(layout.fill))

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        if self.argument is not None and len(produced.order) < produced.width:
            draft.number(self.node, len(produced.order), self.argument)


@dataclass(frozen=True)
class Parameter:
    """A bare parameter or buffer with one entry per channel, which only one operation reads.

    Attributes:
        name: qualified.
        axis: of the channels.
        signal: constant where a channel's entries are one number.
    """

    name: str
    axis: int
    signal: Signal


@dataclass(frozen=True, eq=False)
class Elementwise(Rule):
    """A function of tensors element by element, with broadcasting.

    Attributes:
        function: maps one constant per operand and parameter, float64 of shape (C,), to the output's.
        unknown: whether it also reads something that is not known per channel (another tensor, a number).
        product: whether it multiplies, so that one zero makes a zero.
        parameters: bare parameters among the operands: they can be cut to any channels.
        shared: how many of the operands, the last ones, have one channel that meets all of the others'.
        left_out: channels that are not made, boolean, because whoever reads them takes them from the operands.
    """

    function: Callable[[Sequence[Tensor]], Tensor]
    unknown: bool
    product: bool
    parameters: tuple[Parameter, ...] = ()
    shared: int = 0
    left_out: Tensor | None = None

    @property
    def own(self) -> int:
        """How many operands are read channel by channel."""
        return len(self.operands) - self.shared

    def forward(self, *signals: Signal) -> Signal:
        signals = (*signals[: self.own], *(p.signal for p in self.parameters))
        constant = torch.stack([s.constant for s in signals]).all(0) & (not self.unknown)
        out = Signal.of(constant, self.function([s.value for s in signals]).expand(constant.shape))
        if not self.product:
            return out
        zero = torch.stack([s.zero for s in signals]).any(0)
        return Signal(out.constant | zero, out.value.masked_fill(zero, 0))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        all_or_none = [useful.any().reshape(1)] * self.shared
        if not self.product:
            return [useful] * self.own + all_or_none
        zero = [s.zero for s in (*signals[: self.own], *(p.signal for p in self.parameters))]
        others = (sum(zero[:i] + zero[i + 1 :], torch.zeros_like(useful)) for i in range(self.own))
        return [useful & ~other for other in others] + all_or_none

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels] * self.own + [torch.zeros(1, dtype=torch.bool)] * self.shared

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        own = list(received[: self.own])
        if self.left_out is not None:
            own = [layout.without(self.left_out) for layout in own]
        wanted, produced = join(self, useful, own)
        # What all channels meet must be there as long as any of them is.
        one = torch.arange(min(1, len(produced.order)))
        return wanted + [layout.arranged(one) for layout in received[self.own :]], produced

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        super().emit(draft, received, wanted, produced)
        for parameter in self.parameters:
            if not produced.is_natural and len(produced.order):
                draft.slice(parameter.name, parameter.axis, produced.order)


@dataclass(frozen=True, eq=False)
class Add(Rule):
    """The sum of two tensors of the same shape: what one of them lacks is not put in place, but added to."""

    def forward(self, *signals: Signal) -> Signal:
        a, b = signals
        return Signal.of(a.constant & b.constant, a.value + b.value)

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful, useful]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        return list(received), join(self, useful, received)[1]

    @staticmethod
    def base(received: Sequence[Layout]) -> int:
        """Which operand the other one is added to: the one with more channels."""
        return int(len(received[1].order) > len(received[0].order))

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        a, b = received
        constants = (a.fill + b.fill)[produced.order]
        if len(produced.order) and (not same_order(a, b) or bool((constants != 0).any())):
            assert self.axis is not None
            base = self.base(received)
            in_place = self.operands[base] in draft.overwritable
            draft.sum(self.node, self.axis, base, (a, b), produced, in_place=in_place)

"""The rules of operations that put channels together, choose among them, or look at their number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ._draft import Draft
from ._rule import Rule, Wanted, join
from ._signal import Layout, Signal


@dataclass(frozen=True, eq=False)
class Concat(Rule):
    """Concatenation along the channels: layouts follow each other.

    Attributes:
        widths: channels of each operand.
    """

    widths: list[int]

    def forward(self, *signals: Signal) -> Signal:
        return Signal(torch.cat([s.constant for s in signals]), torch.cat([s.value for s in signals]))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return list(torch.split(channels, self.widths))

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        starts = torch.tensor([0, *(layout.width for layout in received)]).cumsum(0)
        order = torch.cat([start + layout.order for start, layout in zip(starts, received, strict=False)])
        return list(received), Layout(order, torch.cat([layout.fill for layout in received]))

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        empty = [i for i, layout in enumerate(received) if not len(layout.order)]
        if empty and len(produced.order):
            draft.drop(self.node, empty)


@dataclass(frozen=True, eq=False)
class SideBySide(Rule):
    """Concatenation along another axis than the channels': all operands need the same channels."""

    def forward(self, *signals: Signal) -> Signal:
        first = signals[0].value
        same = torch.stack([s.constant & (s.value == first) for s in signals]).all(0)
        return Signal(same, first.masked_fill(~same, 0))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful] * len(signals)

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        return join(self, useful, received)


@dataclass(frozen=True, eq=False)
class ExpandAs(SideBySide):
    """``y.expand_as(x)``: the values are the first operand's; of the second only the shape is read."""

    def forward(self, *signals: Signal) -> Signal:
        return signals[0]

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful, torch.zeros_like(useful)]


@dataclass(frozen=True, eq=False)
class Whole(Rule):
    """An operand whose channels meet (LayerNorm): every channel must be there, in whatever order.

    Attributes:
        norm: qualified name of a module with one parameter per channel, which takes them in any order.
    """

    norm: str | None = None

    def forward(self, *signals: Signal) -> Signal:
        return Signal.live(len(signals[0].constant))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [torch.ones_like(signals[0].constant)]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        (layout,) = received
        whole = layout.extended(torch.ones_like(useful))
        return [whole], whole

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        super().emit(draft, received, wanted, produced)
        if self.norm is not None and not produced.is_natural:
            draft.norms[self.norm] = tuple(produced.order.tolist())


@dataclass(frozen=True, eq=False)
class Channels(Rule):
    """Some channels of the operand, in some order: slices, chunks, shuffles.

    Attributes:
        width: channels of the operand.
        source: for each channel of the output the channel of the operand that it is.
        free: whether the channels need not be moved: the output is the operand under other names.
    """

    width: int
    source: Tensor
    free: bool = False

    def forward(self, *signals: Signal) -> Signal:
        return Signal(signals[0].constant[self.source], signals[0].value[self.source])

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        read = torch.zeros(self.width, dtype=torch.bool)
        read[self.source[channels]] = True
        return [read]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        (layout,) = received
        if self.free:
            renamed = torch.empty_like(self.source)
            renamed[self.source] = torch.arange(len(self.source))
            return [layout], Layout(renamed[layout.order], layout.fill[self.source])
        order = layout.present[self.source].nonzero().flatten()
        return [layout], Layout(order, layout.fill[self.source])

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        (layout,) = received
        assert self.axis is not None
        if self.free:
            draft.pick(self.node, self.operands[0], self.axes[0], None, 0)
        elif len(produced.order) and not layout.is_natural:
            index = layout.positions()[self.source[produced.order]]
            draft.pick(self.node, self.operands[0], self.axes[0], index, len(layout.order))


@dataclass(frozen=True, eq=False)
class PadChannels(Rule):
    """Zero channels before and after the operand's: they never need to exist."""

    before: int
    after: int

    def _pad(self, x: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(x, (self.before, self.after), value=value)

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        return Signal(self._pad(signal.constant, True), self._pad(signal.value, 0))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels[self.before : len(channels) - self.after]]

    def arrange(self, signal: Signal, useful: Tensor, *received: Layout) -> Wanted:
        (layout,) = received
        return [layout], Layout(layout.order + self.before, self._pad(layout.fill, 0))

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        draft.pick(self.node, self.operands[0], self.axes[0], None, 0)


@dataclass(frozen=True, eq=False)
class Sizes(Rule):
    """Reads the shape of its operand, not its values.

    Attributes:
        numbers: nodes that would read the number of channels -> the full number, which they go on reporting.
    """

    numbers: tuple[tuple[fx.Node, int], ...] = ()

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [torch.zeros_like(s.constant) for s in signals]

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        for node, value in self.numbers:
            if not all(layout.is_natural for layout in received):
                draft.number(node, value)


class Absorbed(Rule):
    """A step of something that a rule at a later node stands for."""

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return []

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        pass

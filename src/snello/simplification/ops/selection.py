"""Operations that select channels, reorder them, or pad them with zero channels."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import Graph, known_shape
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import Pick, SetNumber

from ._axes import PERMUTES, indexed, permutation, turned_axes
from .call import Call, argument, sizes
from .channelwise import PerChannel
from .operation import Absorbed, Edit, Lowered, Operation, Placement, Wanted, positions
from .registry import register_pattern, rule_for
from .views import SIZED, VIEWS

_CHUNKS = {"chunk", torch.chunk, "split", torch.split, "tensor_split", torch.tensor_split}


@dataclass(frozen=True, eq=False)
class Selection(Operation):
    """Some channels of the operand, in some order: slices, chunks, shuffles.

    Attributes:
        width: number of channels of the operand.
        source: for each channel of the output, the index of the operand's channel.
        free: whether the output has all channels of the operand. The lean graph then uses the
            operand unchanged, and only the layout is permuted.
    """

    width: int
    source: Tensor
    free: bool = False

    def propagate(self, *signals: Signal) -> Signal:
        return Signal(signals[0].constant[self.source], signals[0].value[self.source])

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        read = torch.zeros(self.width, dtype=torch.bool)
        read[self.source[channels]] = True
        return [read]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        if self.free:
            renamed = torch.empty_like(self.source)
            renamed[self.source] = torch.arange(len(self.source))
            return [layout], Layout(renamed[layout.order], layout.absent[self.source])
        order = layout.present[self.source].nonzero().flatten()
        return [layout], Layout(order, layout.absent[self.source])

    def lower(self, placement: Placement) -> Lowered:
        (layout,), produced = placement.received, placement.produced
        if self.free:
            return _picked(self, None)
        if produced.is_empty or layout.is_natural:
            return Lowered()
        index = layout.positions()[self.source[produced.order]]
        return _picked(self, positions(index, len(layout.order)))


@dataclass(frozen=True, eq=False)
class Shuffle(Selection):
    """A channel shuffle written as view, transpose, view.

    Attributes:
        steps: the nodes before the last one.
    """

    steps: tuple[fx.Node, ...] = ()  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Part(Selection):
    """One part of a chunk or split.

    If all parts keep the same number of channels, the call stays in the lean graph; else each part
    becomes a selection by index.

    Attributes:
        parts: the node of the chunk or split.
        sources_of_all: the channels of each part, of equal number in the original.
    """

    parts: fx.Node | None = None
    sources_of_all: tuple[Tensor, ...] = ()

    def lower(self, placement: Placement) -> Lowered:
        (layout,) = placement.received
        assert self.parts is not None
        count = self._even(layout)
        if count is None or layout.is_natural:
            return super().lower(placement)
        if self.parts.target in ("chunk", torch.chunk):
            return Lowered()
        return Lowered(edits=(Edit(SetNumber(self.parts.name, 0, count)),))

    def _even(self, layout: Layout) -> int | None:
        """Number of channels that each part keeps, in the original order; None if they differ."""
        counts = {int(layout.present[part].sum()) for part in self.sources_of_all}
        sorted_ = torch.equal(layout.order, layout.order.sort().values)
        return counts.pop() or None if sorted_ and len(counts) == 1 else None


@dataclass(frozen=True, eq=False)
class PadChannels(Operation):
    """Padding with zero channels, which are never present in the lean network.

    Attributes:
        before, after: numbers of zero channels.
    """

    before: int
    after: int

    def _pad(self, x: Tensor, value: float) -> Tensor:
        return F.pad(x, (self.before, self.after), value=value)

    def propagate(self, *signals: Signal) -> Signal:
        (signal,) = signals
        return Signal(self._pad(signal.constant, True), self._pad(signal.value, 0))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels[self.before : len(channels) - self.after]]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        return [layout], Layout(layout.order + self.before, self._pad(layout.absent, 0))

    def lower(self, placement: Placement) -> Lowered:
        return _picked(self, None)


def _picked(operation: Operation, index: tuple[int, ...] | None) -> Lowered:
    operand, axis = operation.operands[0], operation.axes[0]
    return Lowered(edits=(Edit(Pick("", operation.node.name, operand.name, axis, index)),))


def _selection(call: Call, source: Tensor, *, free: bool = False) -> Selection | None:
    moving = call.moving_operand()
    if moving is None:
        return None
    operand, axis = moving
    return Selection(call.node, (operand,), (axis,), axis, sizes(operand)[axis], source, free)


@rule_for(nn.ChannelShuffle, F.channel_shuffle, torch.channel_shuffle)
def channel_shuffle(call: Call) -> Operation | None:
    """Channel shuffle by a module or a function."""
    operand, module = call.known_operand(1), call.module
    groups = call.argument(1, "groups") if module is None else module.groups
    if operand is None or not isinstance(groups, int):
        return None
    return _selection(call, _shuffled(sizes(operand)[1], groups), free=True)


def _shuffled(channels: int, groups: int) -> Tensor:
    """For each output channel of a channel shuffle, the index of its input channel."""
    return torch.arange(channels).reshape(groups, -1).T.flatten()


@register_pattern
def shuffles(graph: Graph) -> Iterator[Operation]:
    """Channel shuffles of (N, C, *): view as (N, g, C/g, *), transpose, view as (N, C, *)."""
    for first in graph.nodes:
        steps = [first]
        while len(steps) < 4 and len(steps[-1].users) == 1:
            reader = next(iter(steps[-1].users))
            if reader.target in VIEWS or not reader.args or reader.args[0] is not steps[-1]:
                break
            steps.append(reader)
        last = next(iter(steps[-1].users)) if len(steps[-1].users) == 1 else None
        if last is None or len(steps) < 2 or first.target not in SIZED or last.target not in VIEWS:
            continue
        if (shuffle := _shuffle(steps, last)) is not None:
            yield shuffle


def _shuffle(steps: list[fx.Node], last: fx.Node) -> Shuffle | None:
    source = steps[0].args[0]
    if not isinstance(source, fx.Node) or [s.target for s in steps[2:]] not in ([], ["contiguous"]):
        return None
    before, split, swapped = (sizes(node) for node in (source, steps[0], steps[1]))
    if len(before) < 2 or len(split) != len(before) + 1 or before != sizes(last):
        return None
    if steps[1].target not in PERMUTES or permutation(steps[1]) != [0, 2, 1, *range(3, len(split))]:
        return None
    groups = split[1]
    if split[0] != before[0] or groups * split[2] != before[1] or len(swapped) != len(split):
        return None
    order = _shuffled(before[1], groups)
    return Shuffle(last, (source,), (1,), 1, before[1], order, free=True, steps=tuple(steps))


@rule_for("flip", torch.flip)
def flip(call: Call) -> Operation | None:
    """A flip of the channel axis alone, which is a permutation of channels."""
    moving = call.moving_operand()
    if moving is None or call.shape is None or turned_axes(call.node) != [moving[1]]:
        return None
    return _selection(call, torch.arange(call.shape[moving[1]]).flip(0), free=True)


@rule_for(operator.getitem)
def channel_slice(call: Call) -> Operation | None:
    """`x[:, a:b]`: a slice of channels with known ends, with all other axes whole."""
    moving = call.moving_operand()
    if moving is None or call.shape is None:
        return None
    operand, axis = moving
    found = indexed(call.node, len(sizes(operand)), axis)
    if found is None or found.part == slice(None) or not found.alone:
        return None
    if any(
        isinstance(end, fx.Node) for end in (found.part.start, found.part.stop, found.part.step)
    ):
        return None
    return _selection(call, torch.arange(sizes(operand)[axis])[found.part])


@rule_for("narrow", torch.narrow)
def narrow(call: Call) -> Operation | None:
    """`x.narrow(dim, start, length)`: consecutive channels, or positions."""
    moving, node = call.moving_operand(), call.node
    given = [argument(node, i, n) for i, n in ((1, "dim"), (2, "start"), (3, "length"))]
    if moving is None or call.shape is None or not all(isinstance(n, int) for n in given):
        return None
    operand, axis = moving
    dim, start, length = given
    shape = sizes(operand)
    if dim % len(shape) != axis:
        return PerChannel.of(call, operand)
    return _selection(call, torch.arange(shape[axis]).narrow(0, start, length))


@rule_for(*_CHUNKS)
def chunks(call: Call) -> Operation | None:
    """Chunks and splits: the call is absorbed, and the `getitem` of each part is an operation."""
    return (
        Absorbed.of(call.node)
        if call.moving_operand() is not None and _is_split(call.node)
        else None
    )


@rule_for(operator.getitem)
def chunk(call: Call) -> Operation | None:
    """One part of a chunk or split, of channels or of positions."""
    parts = call.node.args[0]
    if not isinstance(parts, fx.Node) or parts.target not in _CHUNKS or call.shape is None:
        return None
    moving = call.at(parts).moving_operand()
    if moving is None or not _is_split(parts):
        return None
    operand, axis = moving
    shape = sizes(operand)
    if argument(parts, 2, "dim", 0) % len(shape) != axis:
        return PerChannel(call.node, (operand,), (axis,), axis)
    sources = tuple(_split(torch.arange(shape[axis]), parts))
    own = call.node, (operand,), (axis,), axis, shape[axis], sources[call.node.args[1]]  # type: ignore[index]
    equal = len({len(source) for source in sources}) == 1
    written = parts.args[1:2] and type(parts.args[1]) is int
    if equal and written and parts.target not in ("tensor_split", torch.tensor_split):
        return Part(*own, parts=parts, sources_of_all=sources)
    return Selection(*own)


def _is_split(node: fx.Node) -> bool:
    """True for a chunk or split along a known axis, whose parts are read by constant indices."""
    picked = all(u.target is operator.getitem and isinstance(u.args[1], int) for u in node.users)
    known = isinstance(argument(node, 2, "dim", 0), int)
    return picked and known and len(node.all_input_nodes) == 1  # no size is computed


def _split(channels: Tensor, node: fx.Node) -> Sequence[Tensor]:
    """Split channel indices in the same way as a node splits channels."""
    options: dict[str, Any] = {
        k: v for k, v in node.kwargs.items() if k not in ("dim", "input", "tensor")
    }
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return getattr(torch, name)(channels, *node.args[1:2], **options)  # type: ignore[no-any-return]


@rule_for(F.pad)
def pad(call: Call) -> Operation | None:
    """`F.pad`: padding of positions in any mode, or of channels with zeros."""
    moving, node = call.moving_operand(), call.node
    if moving is None or call.shape is None:
        return None
    operand, axis = moving
    amounts, mode = argument(node, 1, "pad"), argument(node, 2, "mode", "constant")
    value = argument(node, 3, "value")
    if not isinstance(amounts, (tuple, list)) or isinstance(value, fx.Node):
        return None
    at = 2 * (len(known_shape(operand)) - 1 - axis)
    own = (amounts[at], amounts[at + 1]) if len(amounts) > at + 1 else (0, 0)
    if own == (0, 0):
        only = float(value or 0) if mode == "constant" else None
        return PerChannel.of(call, operand, only=only)
    others = [p for i, p in enumerate(amounts) if i not in (at, at + 1)]
    if mode != "constant" or value or any(isinstance(p, fx.Node) or p for p in others):
        return None
    if not all(isinstance(p, int) and p >= 0 for p in own):
        return None
    return PadChannels(node, (operand,), (axis,), axis, int(own[0]), int(own[1]))

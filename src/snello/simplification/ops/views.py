"""Views that keep or merge the channel axis, and operations that only read shapes."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import Graph, shape_of
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import SetNumber

from .call import UNFLATTENS, Call, argument, one_by_one, size_arguments, sizes
from .channelwise import PerChannel
from .layers import has_inputs_first
from .operation import Edit, Lowered, Operation, Placement, Wanted
from .registry import rule_for

SIZED = {"view", "reshape", torch.reshape}
"""Views whose sizes are arguments of the call."""
VIEWS = {*SIZED, "flatten", torch.flatten, *UNFLATTENS}


@dataclass(frozen=True, eq=False)
class View(PerChannel):
    """A view that keeps the channel axis or merges it with neighbouring axes.

    A literal size in the call is replaced by that of the lean network.

    Attributes:
        before, after: number of positions on the axes before and after the channels that are
            merged with them.
        argument: position of the size argument that is the number of channels, or of merged
            features; None if there is none (flatten, -1).
    """

    before: int = 1
    after: int = 1
    argument: int | None = None

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        return () if self.before * self.after > 1 else self.operands

    def _merge(self, index: Tensor, channels: int) -> Tensor:
        """Original indices of the merged features, for the present channels in order."""
        before, after = torch.arange(self.before), torch.arange(self.after)
        return (
            (before[:, None, None] * channels + index[None, :, None]) * self.after + after
        ).flatten()

    def _spread(self, per_channel: Tensor) -> Tensor:
        return per_channel[None, :, None].expand(self.before, -1, self.after).flatten()

    def propagate(self, *signals: Signal) -> Signal:
        (signal,) = signals
        return Signal(self._spread(signal.constant), self._spread(signal.value))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels.reshape(self.before, -1, self.after).any(2).any(0)]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        merged = self._merge(layout.order, layout.width)
        return [layout], Layout(merged, self._spread(layout.absent))

    def lower(self, placement: Placement) -> Lowered:
        produced = placement.produced
        if self.argument is None or len(produced.order) == produced.width:
            return Lowered()
        record = SetNumber(self.node.name, self.argument, len(produced.order))
        return Lowered(edits=(Edit(record),))


@dataclass(frozen=True, eq=False)
class Sizes(Operation):
    """An operation that reads the shape of its operand, not its values.

    Attributes:
        numbers: pairs of a node whose value is the number of channels, and the full number, which
            replaces the node in the lean graph.
    """

    numbers: tuple[tuple[fx.Node, int], ...] = ()

    reads_shape_alone: ClassVar[bool] = True

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [torch.zeros_like(s.constant) for s in signals]

    def lower(self, placement: Placement) -> Lowered:
        if all(layout.is_natural for layout in placement.received):
            return Lowered()
        read = ((node, value) for node, value in self.numbers if node.users)
        records = (SetNumber(node.name, -1, value) for node, value in read)
        return Lowered(edits=tuple(Edit(record) for record in records))


_ATTENTION = (F.scaled_dot_product_attention, torch.matmul, operator.matmul)


@rule_for(*VIEWS, nn.Flatten, nn.Unflatten)
def view(call: Call) -> Operation | None:
    """Views in which the channels stay one axis, or are merged with neighbouring axes."""
    moving, after = call.moving_operand(), call.shape
    if moving is None or after is None or not sizes_are_written_out(call.node):
        return None
    operand, axis = moving
    before = sizes(operand)
    prefix = [math.prod(after[:i]) for i in range(len(after) + 1)]
    start = math.prod(before[:axis])
    for out, size in enumerate(after):
        if prefix[out] == start and size == before[axis]:
            return View(call.node, (operand,), (axis,), out, argument=size_argument(call.node, out))
    return _merged(call, operand, axis)


def _merged(call: Call, operand: fx.Node, axis: int) -> View | None:
    """A view that merges the channels with axes before and after them.

    With the batch, too, as attention by `torch.bmm` does it with its heads, where the model's own
    forward stays: an index of channels in a graph would know one batch size alone.
    """
    before, after = sizes(operand), sizes(call.node)
    if not call.graph.runnable and axis == 1 and after[0] == before[0] * before[1]:
        return View(call.node, (operand,), (axis,), 0, before=before[0])
    for first in range(axis, 0, -1):
        for last in range(axis, len(before)):
            out = _place(after, math.prod(before[:first]), math.prod(before[first : last + 1]))
            if out is None:
                continue
            if not _read_by_layers(call.graph, call.node):
                return None
            return View(
                call.node, (operand,), (axis,), out, before=math.prod(before[first:axis]),
                after=math.prod(before[axis + 1 : last + 1]), argument=size_argument(call.node, out),
            )  # fmt: skip
    return None


def _place(shape: tuple[int, ...], start: int, merged: int) -> int | None:
    """Axis of size `merged` after axes of `start` elements in total; None if there is none."""
    axes = range(1, len(shape))
    return next((i for i in axes if math.prod(shape[:i]) == start and shape[i] == merged), None)


def sizes_are_written_out(node: fx.Node) -> bool:
    """Return True if a view has one argument per size.

    A single size can be replaced in the lean graph, but not one inside a whole shape, as in
    `x.view(y.shape)`.
    """
    if node.target not in SIZED:
        return True
    written = one_by_one(node.args[1:])
    return len(written) == len(sizes(node)) and not any(_is_shape(size) for size in written)


def _is_shape(size: object) -> bool:
    """True if a size argument is a whole shape, not one number."""
    if not isinstance(size, fx.Node):
        return False
    whole = size.target == "size" and len(size.args) == 1 and not size.kwargs
    return whole or size.target is getattr or shape_of(size) is not None


def size_argument(node: fx.Node, out: int) -> int | None:
    """Return the position of an axis among a view's size arguments; None if it is not written."""
    if node.target in UNFLATTENS:
        written, rank = size_arguments(node), len(sizes(node.all_input_nodes[0]))
        out -= argument(node, 1, "dim") % rank
        return None if not 0 <= out < len(written) or written[out] == -1 else out
    if node.target not in SIZED and node.target != "expand":
        return None
    written = one_by_one(node.args[1:])
    return None if out >= len(written) or written[out] == -1 else out


def _read_by_layers(graph: Graph, node: fx.Node) -> bool:
    """True if all readers of merged features are layers or attention, possibly after activations.

    These fix the number of features at every resolution, so that an index over features is valid.
    """
    for reader in node.users:
        module = graph.layer(reader)
        if isinstance(module, (nn.Linear, nn.BatchNorm1d)) or has_inputs_first(module):
            continue
        plain = module is not None and next(module.parameters(), None) is None
        joined = reader.target in (torch.cat, torch.concat) and len(sizes(reader)) == 2
        if reader.target in _ATTENTION:
            continue
        passed = joined or reader.target in (F.relu, F.dropout, torch.relu)
        if not (plain and sizes(reader) == sizes(node)) and not passed:
            return False
        if not _read_by_layers(graph, reader):
            return False
    return bool(node.users)


@rule_for("expand")
def expand(call: Call) -> Operation | None:
    """`x.expand(...)` that leaves the channels as they are."""
    moving, out = call.moving_operand(), call.shape
    if moving is None or out is None or len(call.node.args) < 2:
        return None
    operand, axis = moving
    shape = sizes(operand)
    if len(shape) != len(out) or shape[axis] != out[axis]:
        return None
    return View(call.node, (operand,), (axis,), axis, argument=size_argument(call.node, axis))


@rule_for("repeat", "tile", torch.tile)
def repeat(call: Call) -> Operation | None:
    """`x.repeat(...)` and `x.tile(...)`, of the channels, too: all of them follow each other."""
    moving, out = call.moving_operand(), call.shape
    times = one_by_one(call.node.args[1:])
    if moving is None or out is None or len(times) > len(out):
        return None
    operand, axis = moving
    out_axis = axis + len(out) - len(sizes(operand))
    own = ([1] * (len(out) - len(times)) + list(times))[out_axis]
    if type(own) is not int:
        return None
    return View(call.node, (operand,), (axis,), out_axis, before=own)


@rule_for("repeat_interleave", torch.repeat_interleave)
def repeat_interleave(call: Call) -> Operation | None:
    """`x.repeat_interleave(times, dim)`, of the channels, too: those of one follow each other."""
    moving, times, dim = call.moving_operand(), call.argument(1, "repeats"), call.argument(2, "dim")
    if moving is None or type(times) is not int or type(dim) is not int:
        return None
    operand, axis = moving
    after = times if dim % len(sizes(operand)) == axis else 1
    return View(call.node, (operand,), (axis,), axis, after=after)


@rule_for(nn.PixelUnshuffle, F.pixel_unshuffle)
def pixel_unshuffle(call: Call) -> Operation | None:
    """Space to depth: each channel becomes several, which follow each other."""
    operand, out = call.known_operand(1), call.shape
    if operand is None or out is None or len(out) != 4:
        return None
    return View(call.node, (operand,), (1,), 1, after=out[1] // sizes(operand)[1])


@rule_for("dim")
def dim(call: Call) -> Operation | None:
    """`x.dim()`."""
    moving = call.moving_operand()
    return None if moving is None else Sizes(call.node, (moving[0],), (moving[1],), None)


@rule_for("size", getattr)
def size(call: Call) -> Operation | None:
    """`x.size()`, `x.size(dim)` and `x.shape`.

    None if the number of channels may be read in a way that cannot be found in the graph, for
    example as part of a whole shape.
    """
    node, moving = call.node, call.moving_operand()
    if moving is None or (node.target is getattr and node.args[1:] != ("shape",)):
        return None
    operand, axis = moving
    shape = sizes(operand)
    counts: list[fx.Node] | None
    if node.target == "size" and (len(node.args) > 1 or node.kwargs):
        dim = argument(node, 1, "dim")
        if not isinstance(dim, int):
            return None
        counts = [node] if dim % len(shape) == axis else []
    else:
        counts = _counts(node, list(range(len(shape))), axis)
    if counts is None:
        return None
    numbers = tuple((count, shape[axis]) for count in counts)
    return Sizes(node, (operand,), (axis,), None, numbers)


def _counts(node: fx.Node, shown: list[int], axis: int) -> list[fx.Node] | None:
    """Nodes that index the number of channels in a shape; None if another node reads the shape.

    Args:
        node: a shape, or a slice of one.
        shown: for each entry of `node`, the axis whose size it is.
        axis: axis of the channels.
    """
    found: list[fx.Node] = []
    for reader in node.users:
        index = reader.args[1] if reader.target is operator.getitem else None
        if isinstance(index, int):
            found += [reader] if shown[index] == axis else []
        elif isinstance(index, slice) and axis in shown[index]:
            inner = _counts(reader, shown[index], axis)
            if inner is None:
                return None
            found += inner
        elif not isinstance(index, slice):
            return None
    return found

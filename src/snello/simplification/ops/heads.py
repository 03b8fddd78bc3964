"""Attention as separate operations, with heads as channels: scores, softmax, weighted sums."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import known_shape
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import SetNumber

from ._axes import PERMUTES, permutation
from .call import Call, size_arguments, sizes
from .channelwise import PerChannel
from .layers import Source
from .operation import Absorbed, Edit, Lowered, Operation, Placement, Wanted, join
from .registry import rule_for
from .splitting import SplitChannels, split
from .views import VIEWS


@dataclass(frozen=True, eq=False)
class Opaque(PerChannel):
    """An operation per channel through which constants are not propagated."""

    def propagate(self, *signals: Signal) -> Signal:
        return Signal.live(len(signals[0].constant))


@dataclass(frozen=True, eq=False)
class ByHead(Operation):
    """An operation that combines the same head of each operand.

    Attributes:
        factors: positions of the operands for which the output is zero if one of them is.
    """

    factors: tuple[int, ...]

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        return self.operands

    def propagate(self, *signals: Signal) -> Signal:
        zero = torch.stack([signals[i].zero for i in self.factors]).any(0)
        return Signal(zero, torch.zeros(len(zero), dtype=torch.float64))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful & ~signal.constant] * len(signals)

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        return join(self, useful, received)


@dataclass(frozen=True, eq=False)
class GroupedByHead(ByHead):
    """Attention in which several queries, which follow each other, share a key and a value.

    A group of queries is there as a whole, or not at all: the operation counts them off.

    Source: Ainslie et al., GQA, EMNLP 2023.

    Attributes:
        queries: number of queries of each group.
    """

    queries: int = 1

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        return ()

    def _by_operand(self, groups: Tensor) -> list[Tensor]:
        """The same for the heads of each operand: queries, keys, values, masks."""
        heads = groups.repeat_interleave(self.queries)
        return [heads, groups, groups, *[heads] * (len(self.operands) - 3)]

    def _groups(self, heads: Tensor) -> Tensor:
        return heads.reshape(-1, self.queries).any(1)

    def propagate(self, *signals: Signal) -> Signal:
        zero = signals[2].zero.repeat_interleave(self.queries)
        return Signal(zero, torch.zeros(len(zero), dtype=torch.float64))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self._by_operand(self._groups(useful & ~signal.constant))

    def sources(self, channels: Tensor) -> list[Tensor]:
        return self._by_operand(self._groups(channels))

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        known = self.propagate(*(layout.absence for layout in received))
        needed = self._groups(useful & ~known.constant)
        keys = received[1].extended(needed | received[2].present).order
        heads = (keys[:, None] * self.queries + torch.arange(self.queries)).flatten()
        orders = [heads, keys, keys, *[heads] * (len(received) - 3)]
        wanted = [layout.arranged(order) for layout, order in zip(received, orders, strict=True)]
        return wanted, Layout(heads, known.value.index_fill(0, heads, 0))


@rule_for(F.scaled_dot_product_attention)
def scaled_dot_product_attention(call: Call) -> Operation | None:
    """Attention of queries, keys and values (N, heads, tokens, width), with as many heads each, or
    with several queries for each key.
    """
    given = [call.argument(i, name) for i, name in enumerate(("query", "key", "value"))]
    mask = call.argument(3, "attn_mask")
    axes = {call.axes.get(a) for a in given}
    if len(axes) != 1 or call.shape is None:
        return None
    axis = axes.pop()
    if axis is None or axis >= len(call.shape) - 2:
        return None
    operands = [*given, *_with_heads(mask, call, axis)]
    if any(call.axes.get(a) != axis for a in operands):
        return None
    heads, keys, values, *others = (sizes(a)[axis] for a in operands)
    own = (call.node, tuple(operands), (axis,) * len(operands), axis)
    if keys != values or any(count != heads for count in others):
        return None
    # Only zero values give a zero output; the scores do not matter.
    if heads == keys:
        return ByHead(*own, factors=(2,))
    return GroupedByHead(*own, factors=(2,), queries=heads // keys)


@dataclass(frozen=True, eq=False)
class ZerosByHead(Source):
    """Zeros with an axis of heads: there are as many as the other operands have."""

    def propagate(self, *signals: Signal) -> Signal:
        return Signal.live(known_shape(self.node)[1])

    def lower(self, placement: Placement) -> Lowered:
        count = len(placement.produced.order)
        if count == placement.produced.width:
            return Lowered()
        return Lowered(edits=(Edit(SetNumber(self.node.name, 1, count)),))


@rule_for(torch.zeros)
def zeros_by_head(call: Call) -> Operation | None:
    """`torch.zeros((1, heads, queries, keys))`, T5's position bias of attention without one."""
    shape = call.shape or ()
    if len(shape) != 4 or shape[0] != 1 or not call.node.args:
        return None
    if type(size_arguments(call.node)[1]) is not int:
        return None
    return ZerosByHead(call.node, (), (), 1, call.node.name)


def _with_heads(mask: object, call: Call, axis: int) -> list[fx.Node]:
    """The mask, if it differs from head to head."""
    if not isinstance(mask, fx.Node) or call.shape is None:
        return []
    own = axis - len(call.shape) + len(sizes(mask))
    return [mask] if own >= 0 and sizes(mask)[own] > 1 else []


@rule_for(operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm", "__matmul__")
def matmul(call: Call) -> Operation | None:
    """Products of matrices, one for each head."""
    operands = call.node.args[:2]
    if call.shape is None or len(operands) != 2:
        return None
    if not all(isinstance(a, fx.Node) and len(sizes(a)) == len(call.shape) for a in operands):
        return None
    a, b = operands
    axis = call.axes.get(a)  # type: ignore[arg-type]
    if axis is None or axis >= len(call.shape) - 2 or call.axes.get(b) != axis:  # type: ignore[arg-type]
        return None
    if {sizes(x)[axis] for x in operands} != {call.shape[axis]}:  # type: ignore[arg-type]
        return None
    return ByHead(call.node, tuple(operands), (axis, axis), axis, factors=(0, 1))  # type: ignore[arg-type]


@rule_for(torch.softmax, F.softmax, "softmax", nn.Softmax)
def softmax(call: Call) -> Operation | None:
    """Softmax over positions: channel by channel."""
    module = call.module
    dim = call.argument(1, "dim") if module is None else module.dim
    moving = call.moving_operand()
    if moving is None or call.shape is None or not isinstance(dim, int):
        return None
    operand, axis = moving
    return None if dim % len(call.shape) == axis else Opaque.of(call, operand)


@rule_for(nn.LayerNorm, nn.RMSNorm)
def norm_over_positions(call: Call) -> Operation | None:
    """LayerNorm and RMSNorm over axes after the channel axis, as of queries and keys per head."""
    moving, module = call.moving_operand(), call.module
    if moving is None or call.shape is None or module is None:
        return None
    operand, axis = moving
    normalised: tuple[int, ...] = module.normalized_shape  # type: ignore[assignment]
    return Opaque.of(call, operand) if axis < len(call.shape) - len(normalised) else None


@rule_for(F.layer_norm, F.rms_norm)
def functional_norm_over_positions(call: Call) -> Operation | None:
    """`F.layer_norm` and `F.rms_norm` over axes after the channel axis."""
    moving, over = call.moving_operand(), call.argument(1, "normalized_shape")
    if moving is None or call.shape is None or not isinstance(over, (tuple, list)):
        return None
    operand, axis = moving
    return Opaque.of(call, operand) if axis < len(call.shape) - len(over) else None


@rule_for("unbind", torch.unbind)
def unbind(call: Call) -> Operation | None:
    """`unbind` along another axis: each `getitem` of a part is an operation, see `unbound`."""
    moving, dim = call.moving_operand(), call.argument(1, "dim", 0)
    if moving is None or not isinstance(dim, int) or dim % len(sizes(moving[0])) == moving[1]:
        return None
    picked = all(
        u.target is operator.getitem and isinstance(u.args[1], int) for u in call.node.users
    )
    return Absorbed.of(call.node) if picked else None


@dataclass(frozen=True, eq=False)
class PartOfSplit(Operation):
    """One part of a split of channels into parts and groups, such as the queries of a fused qkv.

    The operands are the split tensor and the tensor before the split. The former only gives the
    layout: its groups are the channels of the part. The constants of a part, and the channels from
    which it is taken, are those of the tensor before the split.

    Attributes:
        members: channels before the split that belong to each group of the part: shape (groups,
            members).
    """

    members: Tensor

    def _same(self, signal: Signal) -> Signal:
        constant, value = signal.constant[self.members], signal.value[self.members]
        return Signal.of(constant.all(1) & (value == value[:, :1]).all(1), value[:, 0])

    def propagate(self, *signals: Signal) -> Signal:
        return self._same(signals[1])

    def _spread(self, groups: Tensor, width: int) -> Tensor:
        channels = torch.zeros(width, dtype=torch.bool)
        channels[self.members[groups].flatten()] = True
        return channels

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        split, whole = signals
        needed = self._spread(useful & ~signal.constant, len(whole.constant))
        return [torch.zeros_like(split.constant), needed]

    def sources(self, channels: Tensor) -> list[Tensor]:
        width = known_shape(self.operands[1])[self.axes[1]]
        return [torch.zeros_like(channels), self._spread(channels, width)]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        split, whole = received
        known = self._same(whole.absence)
        return [split, whole], Layout(split.order, known.value.index_fill(0, split.order, 0))


@rule_for(operator.getitem)
def unbound(call: Call) -> Operation | None:
    """One part of an `unbind`, by its index."""
    source = call.node.args[0]
    if not isinstance(source, fx.Node) or source.target not in ("unbind", torch.unbind):
        return None
    whole = call.at(source)
    moving = whole.moving_operand()
    if moving is None or unbind(whole) is None:
        return None
    operand, axis = moving
    dim = whole.argument(1, "dim", 0) % len(sizes(operand))
    out = axis - (dim < axis)
    index = _indices(whole, operand)
    if index is None:
        return PerChannel(call.node, (operand,), (axis,), out)
    before, own, indices = index
    part = indices.unbind(dim)[call.node.args[1]].movedim(out, 0).flatten(1)  # type: ignore[index]
    members = torch.stack([group.unique() for group in part])  # type: ignore[no-untyped-call]
    return PartOfSplit(call.node, (operand, before), (axis, own), out, members)


def _indices(call: Call, node: fx.Node) -> tuple[fx.Node, int, Tensor] | None:
    """Follow the permutations before a node to a split of channels.

    Returns:
        The tensor before the split, the axis of its channels, and the index of the channel at each
        element of `node`, in its shape; None if there is no split.
    """
    permutations = []
    while node.target in PERMUTES:
        permutations.append(permutation(node))
        (node,) = node.all_input_nodes
    operation = split(call.at(node)) if node.target in VIEWS else None
    if not isinstance(operation, SplitChannels) or None in permutations:
        return None
    (before,), (own,) = operation.operands, operation.axes
    places = [1] * len(sizes(before))
    places[own] = -1
    index = torch.arange(sizes(before)[own]).view(places).expand(sizes(before)).reshape(sizes(node))
    for order in reversed(permutations):
        index = index.permute(order)  # type: ignore[arg-type]
    return before, own, index

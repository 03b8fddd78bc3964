"""Sums of tensors with different channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from snello.graph import known_shape, shape_of
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import IndexedSum
from snello.simplification.ops.add import indexed_sum, wider
from snello.simplification.ops.call import Call
from snello.simplification.ops.operation import Lowered, Operation, Placement, Wanted
from snello.simplification.ops.registry import rule_for

from .constants import CachedConstant, along, index_tensor, recording


class ChannelSum(CachedConstant):
    """Add a tensor to some channels of another one, and constants to some.

    The channels of the result are those of the base and `edit.grown` new ones after them. The
    base is overwritten if the plan allows it (no node reads it later) and no gradient is recorded.

    Shape: (N, C, *) and, with an index, (N, len(index), *) to (N, `edit.width`, *).
    """

    snello_leaf = True
    index: Tensor | None
    gather: Tensor | None
    where: Tensor | None
    constant: Tensor | None

    def __init__(self, edit: IndexedSum) -> None:
        super().__init__()
        self.axis, self.grown, self.width = edit.axis, edit.grown, edit.width
        self.in_place = edit.in_place
        self.register_buffer("index", index_tensor(edit.index), persistent=False)
        gather = None if edit.index is None else _inverse(edit.index, edit.width)
        self.register_buffer("gather", gather, persistent=False)
        self.register_buffer("where", index_tensor(edit.constants or None), persistent=False)
        self.register_buffer(
            "constant", torch.zeros(len(edit.constants)) if edit.constants else None
        )

    def forward(self, base: Tensor, other: Tensor | None = None) -> Tensor:
        fresh = not recording()
        owned = self.in_place and fresh
        if self.grown:
            pad = (0, 0) * (base.dim() - self.axis - 1) + (0, self.grown)
            base, owned = F.pad(base, pad), fresh
        if other is not None:
            base, owned = self._add(base, other, owned), fresh
        if self.constant is None:
            return base
        vector = along(self.cached((base.dtype,), self.constant, self._vector), base, self.axis)
        return base.add_(vector) if owned else base + vector

    def _vector(self) -> Tensor:
        """The constants at their channels of the result, zeros elsewhere: shape (width,)."""
        assert self.constant is not None
        assert self.where is not None
        return self.constant.new_zeros(self.width).index_copy(0, self.where, self.constant)

    def _add(self, base: Tensor, other: Tensor, owned: bool) -> Tensor:
        assert self.index is not None
        assert self.gather is not None
        if base.dtype != other.dtype:  # under autocast; indexing does not promote, adding does
            common = torch.promote_types(base.dtype, other.dtype)
            owned = owned and base.dtype == common
            base, other = base.to(common), other.to(common)
        if not torch.compiler.is_exporting():
            if base.is_contiguous():
                return _index_add(base, self.axis, self.index, other, owned)
            if (
                self.axis == 1
                and base.dim() == 4
                and base.is_contiguous(memory_format=torch.channels_last)
            ):
                # On a view (N, H, W, C) of the same memory, because adding by index along axis 1
                # of a channels_last tensor is much slower.
                views = base.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1)
                return _index_add(views[0], 3, self.index, views[1], owned).permute(0, 3, 1, 2)
        # In exported graphs by gathering, which is faster there than scattering.
        if self.width > other.shape[self.axis]:
            other = F.pad(other, (0, 0) * (other.dim() - self.axis - 1) + (0, 1))
        return base + other.index_select(self.axis, self.gather)


def _index_add(base: Tensor, axis: int, index: Tensor, other: Tensor, owned: bool) -> Tensor:
    return base.index_add_(axis, index, other) if owned else base.index_add(axis, index, other)


def _inverse(index: Sequence[int], width: int) -> Tensor:
    """For each channel of the result, the channel of the other operand.

    It is `len(index)`, one past the last channel, where the other operand has none.
    """
    gather = torch.full((width,), len(index))
    gather[list(index)] = torch.arange(len(index))
    return gather


@dataclass(frozen=True, eq=False)
class ScatterAdded(Operation):
    """A sum of two tensors with different channels, or of one tensor and constants.

    Attributes:
        index: for each channel of the second operand, the channel of the output to which it is
            added; empty without a second operand.
        constants: float64, shape (channels of the output,), added to the sum.
        in_place: whether the first operand may be overwritten.
    """

    index: Tensor
    constants: Tensor
    in_place: bool

    def _spread(
        self, first: Tensor, second: Tensor | None = None, *, absent: float
    ) -> tuple[Tensor, Tensor]:
        """Values of both operands in the channels of the output, `absent` where there is none."""
        a, b = (torch.full((len(self.constants),), absent, dtype=first.dtype) for _ in range(2))
        a[: len(first)] = first
        if second is not None:
            b[self.index] = second
        return a, b

    def propagate(self, *signals: Signal) -> Signal:
        constant = self._spread(*(s.constant for s in signals), absent=True)
        value = self._spread(*(s.value for s in signals), absent=0)
        return Signal.of(constant[0] & constant[1], value[0] + value[1] + self.constants)

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        first = known_shape(self.operands[0])[self.axes[0]]
        return [channels[:first], channels[self.index]][: len(self.operands)]

    def _by_output(self, received: Sequence[Layout]) -> tuple[Layout, Layout]:
        """Layouts of the operands, with the channels of the output as indices."""
        absent = self._spread(*(layout.absent for layout in received), absent=0)
        scattered = self.index[received[1].order] if len(received) > 1 else self.index
        return Layout(received[0].order, absent[0]), Layout(scattered, absent[1])

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        first, second = self._by_output(received)
        base, other = (second, first) if wider(first, second) else (first, second)
        order = base.extended(other.present).order
        absent = first.absent + second.absent + self.constants
        return list(received), Layout(order, absent.index_fill(0, order, 0))

    def lower(self, placement: Placement) -> Lowered:
        if placement.produced.is_empty:
            return Lowered()
        first, second = self._by_output(placement.received)
        base = wider(first, second)
        first = Layout(first.order, first.absent + self.constants)
        assert self.axis is not None
        in_place = self.in_place and base == 0
        layouts = (first, second)
        edit = indexed_sum(self.node, self.axis, base, layouts, placement.produced, in_place)
        return Lowered(edits=(edit,))


@rule_for(ChannelSum)
def channel_sum(call: Call) -> Operation | None:
    """Indexed sums of an earlier simplification."""
    module = call.module
    assert isinstance(module, ChannelSum)
    axis = module.axis
    operands = tuple(a for a in call.node.args if isinstance(a, fx.Node))
    if call.known_operand(axis) is None:
        return None
    if any(call.axes.get(a, axis) != axis or shape_of(a) is None for a in operands):
        return None
    constants = torch.zeros(module.width, dtype=torch.float64)
    if module.constant is not None and module.where is not None:
        constants[module.where.cpu()] = module.constant.detach().cpu().double()
    index = torch.zeros(0, dtype=torch.long) if module.index is None else module.index.cpu()
    own = (call.node, operands, (axis,) * len(operands), axis)
    return ScatterAdded(*own, index, constants, module.in_place)

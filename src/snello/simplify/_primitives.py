"""The few operations that a lean graph has and the original has not. Each is one node to snello's tracer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ._plan import Fill, LayerPlan, Sum


def along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """One value per channel, shaped to broadcast over the channels of x."""
    return vector.to(x.dtype).view(-1, *[1] * (x.dim() - axis - 1))


Value = TypeVar("Value")


class Memo(nn.Module):
    """Remembers one tensor, or a few, that are made of constants, as long as those stay what they are."""

    def remembered(self, key: tuple[Any, ...], source: Tensor | None, compute: Callable[[], Value]) -> Value:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        if source is not None:
            key = (*key, source.device, source.dtype, None if source.is_inference() else source._version)
        # The source is held, so that no other tensor can come to be where it was.
        known: tuple[Any, Tensor | None, Value] | None = self.__dict__.get("_memo")
        if known is None or known[0] != key or known[1] is not source:
            known = self.__dict__["_memo"] = key, source, compute()
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_memo"}


def added(y: Tensor, constant: Tensor) -> Tensor:
    """A layer's fresh output plus a constant; in place once no gradient is recorded."""
    return y + constant if torch.is_grad_enabled() else y.add_(constant)


class ChannelFill(nn.Module):
    """Append channels that are constants, then choose channels by index.

    Args:
        plan: what to append and to choose. Constants other than zero are the buffer ``constant``.

    Shape: ``plan.axis`` changes its size, the others stay.
    """

    snello_leaf = True
    constant: Tensor | None
    index: Tensor | None

    def __init__(self, plan: Fill) -> None:
        super().__init__()
        self.axis, self.appended = plan.axis, plan.appended
        self.register_buffer("constant", None if plan.zero else torch.zeros(plan.appended))
        self.register_buffer("index", _positions(plan.index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.appended:
            sizes = [*x.shape[: self.axis], self.appended, *x.shape[self.axis + 1 :]]
            constant = x.new_zeros(1) if self.constant is None else self.constant
            x = torch.cat([x, along(constant, x, self.axis).expand(sizes)], self.axis)
        return x if self.index is None else x.index_select(self.axis, self.index)


class ChannelPick(nn.Module):
    """Some channels, chosen by index; a view where they follow each other.

    Args:
        axis: of the channels.
        index: their positions.
    """

    snello_leaf = True
    index: Tensor | None

    def __init__(self, axis: int, index: Sequence[int]) -> None:
        super().__init__()
        self.axis, self.start, self.length = axis, index[0], len(index)
        run = list(index) == list(range(index[0], index[0] + len(index)))
        self.register_buffer("index", None if run else _positions(index), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.index is None:
            return x.narrow(self.axis, self.start, self.length)
        return x.index_select(self.axis, self.index)


class ChannelSum(Memo):
    """Add a tensor to some channels of another one, and constants to some.

    Channels of the result: those of the base, then ``plan.grown`` new ones. The base is overwritten where the
    plan has shown that nobody reads it later and no gradient is recorded.

    Shape: (N, C, *) and, with an index, (N, len(index), *) to (N, ``plan.width``, *).
    """

    snello_leaf = True
    index: Tensor | None
    gather: Tensor | None
    where: Tensor | None
    constant: Tensor | None

    def __init__(self, plan: Sum) -> None:
        super().__init__()
        self.axis, self.grown, self.width, self.in_place = plan.axis, plan.grown, plan.width, plan.in_place
        self.register_buffer("index", _positions(plan.index), persistent=False)
        self.register_buffer("gather", None if plan.index is None else _inverse(plan), persistent=False)
        self.register_buffer("where", _positions(plan.constants or None), persistent=False)
        self.register_buffer("constant", torch.zeros(len(plan.constants)) if plan.constants else None)

    def forward(self, base: Tensor, other: Tensor | None = None) -> Tensor:
        recording = torch.is_grad_enabled()
        owned = self.in_place and not recording
        if self.grown:
            pad = (0, 0) * (base.dim() - self.axis - 1) + (0, self.grown)
            base, owned = F.pad(base, pad), not recording
        if other is not None:
            base, owned = self._add(base, other, owned), not recording
        if self.constant is None:
            return base
        vector = along(self.remembered((base.dtype,), self.constant, self._vector), base, self.axis)
        return base.add_(vector) if owned else base + vector

    def _vector(self) -> Tensor:
        """The constants where they belong: shape (width,)."""
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
            if self.axis == 1 and base.dim() == 4 and base.is_contiguous(memory_format=torch.channels_last):
                # The same memory seen as (N, H, W, C): along the middle axis it would be slower by far.
                views = base.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1)
                return _index_add(views[0], 3, self.index, views[1], owned).permute(0, 3, 1, 2)
        # Runtimes of exported graphs gather faster than they scatter.
        if self.width > other.shape[self.axis]:
            other = F.pad(other, (0, 0) * (other.dim() - self.axis - 1) + (0, 1))
        return base + other.index_select(self.axis, self.gather)


def _index_add(base: Tensor, axis: int, index: Tensor, other: Tensor, owned: bool) -> Tensor:
    return base.index_add_(axis, index, other) if owned else base.index_add(axis, index, other)


def _positions(index: Sequence[int] | None) -> Tensor | None:
    return None if index is None else torch.tensor(index, dtype=torch.long)


def _inverse(plan: Sum) -> Tensor:
    """For each channel of the result the other operand's channel; one past its last where it has none."""
    assert plan.index is not None
    gather = torch.full((plan.width,), len(plan.index))
    gather[list(plan.index)] = torch.arange(len(plan.index))
    return gather


class _Border(Memo, _ConvNd):
    """A convolution some of whose inputs were constants other than zero.

    Away from the border their contribution is a bias; at the border the padding cuts part of it off. It is
    recovered at every resolution by convolving ones with ``border``: the kernel summed over the constant
    inputs, weighted by their values. Shape of ``border``: (out, 1, *kernel).
    """

    snello_leaf = True
    border: Tensor

    def forward(self, x: Tensor) -> Tensor:
        def compute() -> Tensor:
            return convolve(self, x.new_ones(1, 1, *x.shape[2:]), self.border.to(x.dtype), groups=1)

        y: Tensor = super().forward(x)
        constant = self.remembered((x.shape[2:], x.dtype), self.border, compute)
        return added(y, constant)


class BorderConv1d(_Border, nn.Conv1d):
    """Conv1d with constant inputs folded in; see :class:`_Border`."""


class BorderConv2d(_Border, nn.Conv2d):
    """Conv2d with constant inputs folded in; see :class:`_Border`."""


class BorderConv3d(_Border, nn.Conv3d):
    """Conv3d with constant inputs folded in; see :class:`_Border`."""


class _BorderTransposed(Memo, _ConvTransposeNd):
    """A transposed convolution with constant inputs folded in; ``border`` has shape (1, out, *kernel)."""

    snello_leaf = True
    border: Tensor

    def forward(self, x: Tensor) -> Tensor:
        def compute() -> Tensor:
            operation = getattr(F, f"conv_transpose{x.dim() - 2}d")
            ones, border = x.new_ones(1, 1, *x.shape[2:]), self.border.to(x.dtype)
            geometry = self.stride, self.padding, self.output_padding, 1, self.dilation
            return operation(ones, border, None, *geometry)  # type: ignore[no-any-return]

        y: Tensor = super().forward(x)
        constant = self.remembered((x.shape[2:], x.dtype), self.border, compute)
        return added(y, constant)


class BorderConvTranspose1d(_BorderTransposed, nn.ConvTranspose1d):  # type: ignore[misc]
    """ConvTranspose1d with constant inputs folded in."""


class BorderConvTranspose2d(_BorderTransposed, nn.ConvTranspose2d):  # type: ignore[misc]
    """ConvTranspose2d with constant inputs folded in."""


class BorderConvTranspose3d(_BorderTransposed, nn.ConvTranspose3d):  # type: ignore[misc]
    """ConvTranspose3d with constant inputs folded in."""


_BORDERS: dict[type[_ConvNd], type[_ConvNd]] = {
    nn.Conv1d: BorderConv1d, nn.Conv2d: BorderConv2d, nn.Conv3d: BorderConv3d,
    nn.ConvTranspose1d: BorderConvTranspose1d, nn.ConvTranspose2d: BorderConvTranspose2d,
    nn.ConvTranspose3d: BorderConvTranspose3d,
}  # fmt: skip


FOLDED = ("border", "table", "gated")
"""Buffers of a lean layer with what folded inputs add: a row for each neuron, on the axis of the weight's neurons."""


def hold(
    conv: _ConvNd,
    kinds: Mapping[type[_ConvNd], type[_ConvNd]],
    name: str,
    shape: Sequence[int],
    outputs: Tensor,
) -> None:
    """Make a narrowed convolution one that has such a buffer; of one that it has, the kept outputs stay.

    Args:
        conv: changed in place.
        kinds: kind of convolution -> the kind that has the buffer.
        name: of the buffer.
        shape: of an empty one.
        outputs: which neurons are kept.
    """
    conv.__class__ = next(kind for plain, kind in kinds.items() if isinstance(conv, plain))
    axis = 1 if isinstance(conv, _ConvTransposeNd) else 0
    known = getattr(conv, name, None)
    empty = conv.weight.detach().new_zeros(*shape)
    conv.register_buffer(name, empty if known is None else known.index_select(axis, outputs))


def add_border(conv: _ConvNd, outputs: Tensor) -> None:
    """Make a narrowed convolution ready to hold a border kernel: see :func:`hold`."""
    one = (1, len(outputs)) if isinstance(conv, _ConvTransposeNd) else (len(outputs), 1)
    hold(conv, _BORDERS, "border", (*one, *conv.kernel_size), outputs)


def convolve(conv: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The convolution's geometry with another weight, without bias."""
    operation = getattr(F, f"conv{x.dim() - 2}d")
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding: Any = 0
    else:
        padding = conv.padding
    return operation(x, weight, None, conv.stride, padding, conv.dilation, groups)  # type: ignore[no-any-return]


class RaggedConv(Memo):
    """A grouped convolution whose groups have lost different numbers of channels.

    Only the kernels that are left are stored: ``weight`` has shape (pairs, *kernel), one kernel for each pair
    of a kept input and a kept output of the same group. To compute, they are laid out in groups of one width,
    the rest zero: that of the widest group, or the next width that grouped convolutions are fast at.

    Args:
        conv: the original grouped convolution.
        plan: what stays of it.
    """

    snello_leaf = True
    bias: Tensor | None
    border: Tensor | None
    inputs: Tensor
    outputs: Tensor
    slots: Tensor

    def __init__(self, conv: _ConvNd, plan: LayerPlan) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.padding_mode, self.kernel_size = conv.padding_mode, conv.kernel_size
        if conv.padding_mode != "zeros":
            self._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        groups = _group_members(plan)
        width = _fast_width(max(max(len(i), len(o)) for i, o in groups))
        fan_in, fan_out = min(width, plan.inputs // plan.groups), min(width, plan.outputs // plan.groups)
        self.groups, self.fan_in, self.fan_out = len(groups), fan_in, fan_out
        position = {channel: i for i, channel in enumerate(plan.kept_inputs)}
        # A group that is narrower reads its first input again, with a weight of zero.
        gather = [position[(i + i[:1] * fan_in)[slot]] for i, _ in groups for slot in range(fan_in)]
        place = {
            o: g * fan_out + slot for g, (_, members) in enumerate(groups) for slot, o in enumerate(members)
        }
        slots = [
            place[o] * fan_in + slot
            for inputs, members in groups
            for o in members
            for slot in range(len(inputs))
        ]
        kept = conv.weight.detach()[pairs(plan)]
        self.weight = nn.Parameter(kept.clone(), requires_grad=conv.weight.requires_grad)
        kept_outputs = torch.tensor(plan.kept_outputs)
        bias = (
            conv.bias.detach()[kept_outputs] if conv.bias is not None else kept.new_zeros(len(kept_outputs))
        )
        self.bias = nn.Parameter(bias.clone()) if plan.bias else None
        border = kept.new_zeros(len(kept_outputs), 1, *conv.kernel_size) if plan.border else None
        self.register_buffer("border", border)
        outputs = [place[o] for o in plan.kept_outputs]
        for name, index in (("inputs", gather), ("outputs", outputs), ("slots", slots)):
            self.register_buffer(name, torch.tensor(index, device=kept.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self._laid_out()
        y = convolve(self, x.index_select(1, self.inputs), weight, self.groups).index_select(1, self.outputs)
        if self.border is not None:
            ones, border = x.new_ones(1, 1, *x.shape[2:]), self.border.to(x.dtype)
            y = y + self.remembered(
                (x.shape[2:], x.dtype), self.border, lambda: convolve(self, ones, border, groups=1)
            )
        return y if self.bias is None else y + along(self.bias, y, 1)

    def _laid_out(self) -> Tensor:
        """The kernels in groups of one width: (groups * out per group, in per group, *kernel)."""
        rows = self.groups * self.fan_out
        empty = self.weight.new_zeros(rows * self.fan_in, *self.kernel_size)
        return empty.index_copy(0, self.slots, self.weight).view(rows, self.fan_in, *self.kernel_size)


def _fast_width(channels: int) -> int:
    """The next larger number of channels per group, in and out, at which grouped convolutions are fast.

    On x86, groups of 4, 8, 16, 24 or 32 channels take 0.5 to 0.95 of the time of groups of 3, 7, 13, 23 or 30
    (``benchmarks/index_operations.py``): the zeros are cheaper than the odd size.
    """
    if channels <= 4:
        return channels if channels < 3 else 4
    return math.ceil(channels / 8) * 8


def _group_members(plan: LayerPlan) -> list[tuple[list[int], list[int]]]:
    """Kept inputs and kept outputs of each group that still has outputs."""
    fan_in, fan_out = plan.inputs // plan.groups, plan.outputs // plan.groups
    members: dict[int, tuple[list[int], list[int]]] = {}
    for output in plan.kept_outputs:
        members.setdefault(output // fan_out, ([], []))[1].append(output)
    for channel in plan.kept_inputs:
        if channel // fan_in in members:
            members[channel // fan_in][0].append(channel)
    return list(members.values())


def pairs(plan: LayerPlan) -> tuple[Tensor, Tensor]:
    """Where the kernels of a ragged convolution are in the original weight: rows, and columns of their group."""
    fan_in = plan.inputs // plan.groups
    joined = [(o, i % fan_in) for inputs, outputs in _group_members(plan) for o in outputs for i in inputs]
    rows, columns = torch.tensor(joined).T
    return rows, columns


def is_even(plan: LayerPlan) -> bool:
    """Whether every group of a narrowed grouped convolution has as many inputs and outputs as the next."""
    groups = _group_members(plan)
    used = sum(len(inputs) for inputs, _ in groups) == len(plan.kept_inputs)
    return used and len({(len(i), len(o)) for i, o in groups}) == 1

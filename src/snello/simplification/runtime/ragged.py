"""Grouped convolutions whose groups have lost different numbers of channels.

They have no rule: if a lean model is simplified again, they keep all of their channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from snello.simplification.ir.folds import BorderFold
from snello.simplification.ir.plan import LayerPlan

from .constants import CachedConstant, along
from .convolution import convolve


class RaggedConv(CachedConstant):
    """A grouped convolution whose groups have lost different numbers of channels.

    Only the remaining kernels are stored: `weight` has shape (pairs, *kernel), one kernel for
    each pair of a kept input and a kept output of the same group. In the forward, the groups are
    padded with zeros to one width: that of the widest group, or the next larger one for which
    grouped convolutions are fast.

    Args:
        conv: the original grouped convolution.
        plan: the kept channels.
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
        fan_in, fan_out = (
            min(width, plan.inputs // plan.groups),
            min(width, plan.outputs // plan.groups),
        )
        self.groups, self.fan_in, self.fan_out = len(groups), fan_in, fan_out
        position = {channel: i for i, channel in enumerate(plan.kept_inputs)}
        # A narrower group is padded with its first input, which has zero weights.
        gather = [position[(i + i[:1] * fan_in)[slot]] for i, _ in groups for slot in range(fan_in)]
        place = {
            o: g * fan_out + slot
            for g, (_, members) in enumerate(groups)
            for slot, o in enumerate(members)
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
        known = conv.bias
        bias = kept.new_zeros(len(kept_outputs)) if known is None else known.detach()[kept_outputs]
        trained = (conv.weight if known is None else known).requires_grad
        self.bias = nn.Parameter(bias, trained) if plan.bias else None
        has_border = plan.fold(BorderFold) is not None
        border = kept.new_zeros(len(kept_outputs), 1, *conv.kernel_size) if has_border else None
        self.register_buffer("border", border)
        outputs = [place[o] for o in plan.kept_outputs]
        for name, index in (("inputs", gather), ("outputs", outputs), ("slots", slots)):
            self.register_buffer(name, torch.tensor(index, device=kept.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self._laid_out()
        y = convolve(self, x.index_select(1, self.inputs), weight, self.groups)
        y = y.index_select(1, self.outputs)
        if self.border is not None:
            ones, border = x.new_ones(1, 1, *x.shape[2:]), self.border.to(x.dtype)
            key = (x.shape[2:], x.dtype)
            y = y + self.cached(key, self.border, lambda: convolve(self, ones, border, groups=1))
        return y if self.bias is None else y + along(self.bias, y, 1)

    def _laid_out(self) -> Tensor:
        """The padded weight: shape (groups * out per group, in per group, *kernel)."""
        rows = self.groups * self.fan_out
        empty = self.weight.new_zeros(rows * self.fan_in, *self.kernel_size)
        return empty.index_copy(0, self.slots, self.weight).view(
            rows, self.fan_in, *self.kernel_size
        )


def _fast_width(channels: int) -> int:
    """Return the next larger number of channels per group at which grouped convolutions are fast.

    On x86, groups of 4, 8, 16, 24 or 32 channels take 0.5 to 0.95 of the time of groups of 3, 7,
    13, 23 or 30 (`benchmarks/index_operations.py`): the zeros are cheaper than the odd size.
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
    """Rows and columns of a ragged convolution's kernels in the original weight, shape (pairs,)."""
    fan_in = plan.inputs // plan.groups
    joined = [
        (o, i % fan_in) for inputs, outputs in _group_members(plan) for o in outputs for i in inputs
    ]
    rows, columns = torch.tensor(joined).T
    return rows, columns


def is_even(plan: LayerPlan) -> bool:
    """True if all groups of a narrowed convolution have the same numbers of inputs and outputs."""
    groups = _group_members(plan)
    used = sum(len(inputs) for inputs, _ in groups) == len(plan.kept_inputs)
    return used and len({(len(i), len(o)) for i, o in groups}) == 1

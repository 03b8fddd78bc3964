"""Pointwise convolutions with a table by position, and what tells them which column counts where."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._plan import Overhang
from ._primitives import Memo, added, hold

Position = TypeVar("Position", int, Tensor)


@dataclass(frozen=True)
class _Axis:
    """One axis of a convolution.

    Attributes:
        kernel, stride, dilation, before, after: its geometry.
        most_before, most_after: how many taps are cut off at most.
    """

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    most_before: int
    most_after: int

    @property
    def ways(self) -> int:
        return (self.most_before + 1) * (self.most_after + 1)

    def outputs(self, size: int) -> int:
        """How many positions the output has."""
        return (size + self.before + self.after - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def way(self, output: Position, size: int, positive: Callable[[Position], Position]) -> Position:
        """In which way the kernel hangs over at positions of the output; ``positive`` makes negative numbers 0."""
        start = output * self.stride - self.before
        # Of the taps at start, start + dilation, ...: those below 0, and those from size on.
        cut_before = positive(self.dilation - 1 - start) // self.dilation
        inside = (size - start + self.dilation - 1) // self.dilation
        cut_after = positive(self.kernel - inside)
        return cut_before * (self.most_after + 1) + cut_after


class Overhangs(Memo):
    """At each position of a convolution's output: in which way its kernel hangs over the border.

    Per axis, with i taps cut off before and j after, of at most b and a: way ``i * (a + 1) + j``; over the axes
    they are numbered like the elements of a tensor. Only the size of the input is read.

    Args:
        plan: the geometry of the convolution.

    Shape: (N, C, *) to the spatial shape of the convolution's output; int64.
    """

    snello_leaf = True

    def __init__(self, plan: Overhang) -> None:
        super().__init__()
        geometry = (plan.kernel, plan.stride, plan.dilation, plan.before, plan.after, *plan.cut)
        self.axes = [_Axis(*axis) for axis in zip(*geometry, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.remembered((x.shape[2:], x.device), None, lambda: self.ways(x))

    def ways(self, x: Tensor) -> Tensor:
        """The same, worked out."""
        ways = torch.zeros((), dtype=torch.long, device=x.device)
        for size, axis in zip(x.shape[2:], self.axes, strict=True):
            outputs = torch.arange(axis.outputs(size), device=x.device)
            ways = ways.unsqueeze(-1) * axis.ways + axis.way(outputs, size, lambda n: n.clamp(min=0))
        return ways

    def occurring(self, sizes: Sequence[int]) -> list[int]:
        """Which ways occur at an input size."""
        found = [0]
        for size, axis in zip(sizes, self.axes, strict=True):
            own = {axis.way(output, size, lambda n: max(n, 0)) for output in range(axis.outputs(size))}
            found = [way * axis.ways + one for way in found for one in sorted(own)]
        return found


def taps_inside(plan: Overhang) -> Tensor:
    """Which taps of a kernel are inside, for each way to hang over: boolean, shape (ways, taps)."""

    def along(kernel: int, before: int, after: int) -> list[Tensor]:
        taps = torch.arange(kernel)
        return [(taps >= i) & (taps < kernel - j) for i in range(before + 1) for j in range(after + 1)]

    axes = [along(*axis) for axis in zip(plan.kernel, *plan.cut, strict=True)]
    ways = (torch.meshgrid(*taps, indexing="ij") for taps in itertools.product(*axes))
    return torch.stack([torch.stack(axis).all(0).flatten() for axis in ways])


class _Same:
    """Equal to what wraps the very same object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class _Tabled(Memo, _ConvNd):
    """A pointwise convolution some of whose inputs depended on the position alone.

    What they added is in ``table``, shape (out, ways to hang over): which column counts where is for
    :class:`Overhangs` to say.
    """

    snello_leaf = True
    table: Tensor

    def forward(self, x: Tensor, ways: Tensor) -> Tensor:
        y: Tensor = super().forward(x)

        def compute() -> Tensor:
            return self.table.to(y.dtype)[:, ways]

        constant = self.remembered((_Same(ways), y.dtype), self.table, compute)
        return added(y, constant)


class TabledConv1d(_Tabled, nn.Conv1d):  # type: ignore[misc]
    """Conv1d with inputs that depend on the position folded in; see :class:`_Tabled`."""


class TabledConv2d(_Tabled, nn.Conv2d):  # type: ignore[misc]
    """Conv2d with inputs that depend on the position folded in; see :class:`_Tabled`."""


class TabledConv3d(_Tabled, nn.Conv3d):  # type: ignore[misc]
    """Conv3d with inputs that depend on the position folded in; see :class:`_Tabled`."""


_TABLED: dict[type[_ConvNd], type[_ConvNd]] = {
    nn.Conv1d: TabledConv1d, nn.Conv2d: TabledConv2d, nn.Conv3d: TabledConv3d
}  # fmt: skip


def add_table(conv: _ConvNd, outputs: Tensor, ways: int) -> None:
    """Make a narrowed convolution ready to hold a table: see :func:`snello.simplify._primitives.hold`."""
    hold(conv, _TABLED, "table", (len(outputs), ways), outputs)

"""Pointwise convolutions with a table by position, and what tells them which column counts where."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._plan import Overhang
from ._primitives import Memo, added


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
        self.axes = list(
            zip(plan.kernel, plan.stride, plan.dilation, plan.before, plan.after, *plan.cut, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.remembered((x.shape[2:], x.device), None, lambda: self.ways(x))

    def ways(self, x: Tensor) -> Tensor:
        """The same, worked out."""
        ways = torch.zeros((), dtype=torch.long, device=x.device)
        for size, axis in zip(x.shape[2:], self.axes, strict=True):
            kernel, stride, dilation, before, after, most_before, most_after = axis
            outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            start = torch.arange(outputs, device=x.device) * stride - before
            # Of the taps at start, start + dilation, ...: those below 0, and those from size on.
            cut_before = (dilation - 1 - start).clamp(min=0) // dilation
            inside = (size - start + dilation - 1) // dilation
            cut_after = (kernel - inside).clamp(min=0)
            own = cut_before * (most_after + 1) + cut_after
            ways = ways.unsqueeze(-1) * ((most_before + 1) * (most_after + 1)) + own
        return ways


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
    """Make a narrowed convolution ready to hold a table; of one that it has, the kept outputs stay."""
    conv.__class__ = _TABLED.get(type(conv), type(conv))
    known = getattr(conv, "table", None)
    empty = conv.weight.detach().new_zeros(len(outputs), ways)
    conv.register_buffer("table", empty if known is None else known.index_select(0, outputs))

"""The few operations that a lean graph has and the original has not. Each is one node to snello's tracer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


class ChannelFill(nn.Module):
    """Widen a tensor: place its channels where the reader expects them, constants elsewhere.

    Args:
        index: for each channel of the result, the position in the input, or -1 where it is absent.
        constant: whether absent channels hold non-zero values; they are kept in the buffer ``constant``.

    Shape: (N, C, *) to (N, len(index), *).
    """

    snello_leaf = True
    index: Tensor
    constant: Tensor | None

    def __init__(self, index: Sequence[int], constant: bool) -> None:
        super().__init__()
        # The last position, -1, is the zero channel that forward() appends.
        present = sum(i >= 0 for i in index)
        positions = torch.tensor([i if i >= 0 else present for i in index])
        self.register_buffer("index", positions, persistent=False)
        self.register_buffer("constant", torch.zeros(len(index)) if constant else None)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, 1))
        return _add_constant(padded.index_select(1, self.index), self.constant)


class ChannelConstant(nn.Module):
    """Add one constant per channel: what is left of an operand of which nothing is present.

    Shape: (N, C, *) to the same.
    """

    snello_leaf = True
    constant: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("constant", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return _add_constant(x, self.constant)


def _add_constant(x: Tensor, constant: Tensor | None) -> Tensor:
    return x if constant is None else x + constant.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


class _Border(_ConvNd):
    """A convolution some of whose inputs were non-zero constants before zero padding.

    Away from the border their contribution is a bias; at the border the padding cuts part of it off. It is
    recovered at every resolution by convolving ones with ``border``: the kernel summed over the constant
    inputs, weighted by their values. Shape of ``border``: (out, 1, *kernel).
    """

    snello_leaf = True
    border: Tensor

    def forward(self, x: Tensor) -> Tensor:
        ones = x.new_ones(1, 1, *x.shape[2:])
        constant = self._conv_forward(ones, self.border.to(x.dtype), None)  # type: ignore[operator]
        return super().forward(x) + constant  # type: ignore[no-any-return, misc]


class BorderConv1d(_Border, nn.Conv1d):
    """Conv1d with constant inputs folded in; see :class:`_Border`."""


class BorderConv2d(_Border, nn.Conv2d):
    """Conv2d with constant inputs folded in; see :class:`_Border`."""


class BorderConv3d(_Border, nn.Conv3d):
    """Conv3d with constant inputs folded in; see :class:`_Border`."""


def with_border(conv: _ConvNd) -> _ConvNd:
    """The same convolution, ready to hold a border kernel."""
    kinds = {nn.Conv1d: BorderConv1d, nn.Conv2d: BorderConv2d, nn.Conv3d: BorderConv3d}
    kind = next(border for plain, border in kinds.items() if isinstance(conv, plain))
    conv.__class__ = kind
    conv.register_buffer("border", conv.weight.detach().new_zeros(conv.out_channels, 1, *conv.kernel_size))
    return conv

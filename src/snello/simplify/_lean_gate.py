"""Pointwise convolutions that read a gate beside their input."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._primitives import added, convolve


class _Gated(_ConvNd):
    """A pointwise convolution some of whose inputs were constants times a gate: the gate itself takes their place.

    The buffer ``gated``, shape (out, C of the gate, 1, ...), holds their columns times the constants.

    Shape: (N, C, *) and (N, C of the gate, 1, ...) to (N, out, *).
    """

    snello_leaf = True
    gated: Tensor

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return added(y, convolve(self, gate, self.gated, groups=1))


class GatedConv1d(_Gated, nn.Conv1d):  # type: ignore[misc]
    """Conv1d that reads a gate; see :class:`_Gated`."""


class GatedConv2d(_Gated, nn.Conv2d):  # type: ignore[misc]
    """Conv2d that reads a gate; see :class:`_Gated`."""


class GatedConv3d(_Gated, nn.Conv3d):  # type: ignore[misc]
    """Conv3d that reads a gate; see :class:`_Gated`."""


_GATED: dict[type[_ConvNd], type[_ConvNd]] = {
    nn.Conv1d: GatedConv1d, nn.Conv2d: GatedConv2d, nn.Conv3d: GatedConv3d
}  # fmt: skip


def add_gate(conv: _ConvNd, outputs: Tensor, channels: int) -> None:
    """Make a narrowed convolution ready to read a gate; of columns that it has, the kept outputs stay."""
    conv.__class__ = _GATED.get(type(conv), type(conv))
    known = getattr(conv, "gated", None)
    empty = conv.weight.detach().new_zeros(len(outputs), channels, *conv.kernel_size)
    conv.register_buffer("gated", empty if known is None else known.index_select(0, outputs))

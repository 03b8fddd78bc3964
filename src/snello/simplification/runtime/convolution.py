"""Convolutions with folded constants in addition to the bias.

They have no rule of their own: `snello.simplification.ops.layers.Weighted` reads their
buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.neurons import neuron_axis
from snello.simplification.ir.folds import BorderFold, Fold, GateFold, TableFold

from .constants import CachedConstant, Same, added
from .position_dependent import Computed


class FoldedConv(CachedConstant, _ConvNd):
    """A convolution with the contribution of removed inputs in buffers, each of which may be None:

    - `border`, shape (out, 1, *kernel), or (1, out, *kernel) if transposed: the kernel summed
      over constant inputs, weighted by their values. Its convolution with ones is the contribution
      of these inputs at every resolution: a bias in the interior, less at the border, where the
      padding cuts off part of the kernel.
    - `table`, shape (out, border patterns): the contribution of inputs that depended on the
      position alone. The forward receives the pattern at each position.
    - `gated`, shape (out, C of the gate, 1, ...): columns of inputs that were a constant times a
      gate, multiplied by the constants. The forward receives the gate; its last channels may
      multiply values that depend on the position (`static`).

    Shape: that of the convolution.
    """

    snello_leaf = True
    border: Tensor | None
    table: Tensor | None
    gated: Tensor | None

    def forward(
        self,
        x: Tensor,
        gate: Tensor | None = None,
        *,
        pattern: Tensor | None = None,
        static: Computed | None = None,
    ) -> Tensor:
        y: Tensor = super().forward(x)
        if (border := self.border) is not None:
            y = added(
                y, self.cached((x.shape[2:], x.dtype), border, lambda: self._at_border(x, border))
            )
        if (table := self.table) is not None:
            assert pattern is not None, "a layer with a table is called with the border patterns"
            key = (Same(pattern), y.dtype)
            y = added(y, self.cached(key, table, lambda: table.to(y.dtype)[:, pattern]))
        if self.gated is not None:
            assert gate is not None, "a layer with columns for a gate is called with the gate"
            y = added(y, self._from_gate(gate, static, y))
        return y

    def _at_border(self, x: Tensor, border: Tensor) -> Tensor:
        return convolve(self, x.new_ones(1, 1, *x.shape[2:]), border.to(x.dtype), groups=1)

    def _from_gate(self, gate: Tensor, static: Computed | None, y: Tensor) -> Tensor:
        assert self.gated is not None
        if static is None:
            return convolve(self, gate, self.gated, groups=1)
        values, where = (part.to(gate.dtype) for part in static[:2])
        # The batch size is written as -1: reading it would add operations to an exported graph.
        weighed = self.gated.flatten(1).to(gate.dtype) @ (gate.reshape(-1, len(values), 1) * values)
        return (weighed @ where).to(y.dtype).view(-1, *y.shape[1:])


class FoldedConv1d(FoldedConv, nn.Conv1d):  # type: ignore[misc]
    """Conv1d with constants folded in; see `FoldedConv`."""


class FoldedConv2d(FoldedConv, nn.Conv2d):  # type: ignore[misc]
    """Conv2d with constants folded in; see `FoldedConv`."""


class FoldedConv3d(FoldedConv, nn.Conv3d):  # type: ignore[misc]
    """Conv3d with constants folded in; see `FoldedConv`."""


class FoldedConvTransposed(FoldedConv, _ConvTransposeNd):  # type: ignore[misc]
    """A transposed convolution with constants folded in; of the buffers it only uses `border`."""

    def _at_border(self, x: Tensor, border: Tensor) -> Tensor:
        operation: Any = getattr(F, f"conv_transpose{x.dim() - 2}d")
        ones = x.new_ones(1, 1, *x.shape[2:])
        geometry = self.stride, self.padding, self.output_padding, 1, self.dilation
        return operation(ones, border.to(x.dtype), None, *geometry)  # type: ignore[no-any-return]


class FoldedConvTranspose1d(FoldedConvTransposed, nn.ConvTranspose1d):  # type: ignore[misc]
    """ConvTranspose1d with constants folded in; see `FoldedConv`."""


class FoldedConvTranspose2d(FoldedConvTransposed, nn.ConvTranspose2d):  # type: ignore[misc]
    """ConvTranspose2d with constants folded in; see `FoldedConv`."""


class FoldedConvTranspose3d(FoldedConvTransposed, nn.ConvTranspose3d):  # type: ignore[misc]
    """ConvTranspose3d with constants folded in; see `FoldedConv`."""


_KINDS: dict[type[_ConvNd], type[FoldedConv]] = {
    nn.Conv1d: FoldedConv1d, nn.Conv2d: FoldedConv2d, nn.Conv3d: FoldedConv3d,
    nn.ConvTranspose1d: FoldedConvTranspose1d, nn.ConvTranspose2d: FoldedConvTranspose2d,
    nn.ConvTranspose3d: FoldedConvTranspose3d,
}  # fmt: skip


def fold(conv: _ConvNd, record: Fold, outputs: Tensor) -> None:
    """Add the buffer of a fold to a narrowed convolution, in place.

    Args:
        conv: the convolution; its class is changed to the one with folds.
        record: the fold. The buffer has the kept rows of an existing one, else it is zero.
        outputs: indices of the kept neurons.

    Raises:
        TypeError: for a kind of fold without a buffer.
    """
    if not isinstance(conv, FoldedConv):
        conv.__class__ = next(kind for plain, kind in _KINDS.items() if isinstance(conv, plain))
        for name in Fold.family:
            conv.register_buffer(name, None)
    transposed = isinstance(conv, _ConvTransposeNd)
    known = getattr(conv, record.tag)
    shape = _shape(conv, record, len(outputs), transposed)
    rows = None if known is None else known.index_select(neuron_axis(conv) or 0, outputs)
    conv.register_buffer(
        record.tag, conv.weight.detach().new_zeros(*shape) if rows is None else rows
    )


def _shape(conv: _ConvNd, record: Fold, outputs: int, transposed: bool) -> Sequence[int]:
    match record:
        case TableFold(patterns):
            return outputs, patterns
        case GateFold(channels):
            return outputs, channels, *conv.kernel_size
        case BorderFold():
            one = (1, outputs) if transposed else (outputs, 1)
            return *one, *conv.kernel_size
    raise TypeError(f"no buffer for {record}")


def convolve(conv: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Convolve with the geometry of a convolution and another weight, without bias."""
    operation = getattr(F, f"conv{x.dim() - 2}d")
    if conv.padding_mode != "zeros":
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding: Any = 0
    else:
        padding = conv.padding
    return operation(x, weight, None, conv.stride, padding, conv.dilation, groups)  # type: ignore[no-any-return]

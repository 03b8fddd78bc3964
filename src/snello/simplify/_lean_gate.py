"""Pointwise convolutions that read a gate beside their input, and what they need for channels that are not made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ._lean_position import Overhangs, taps_inside
from ._plan import Statics
from ._primitives import Memo, added, along, convolve, hold

Worked = tuple[Tensor, Tensor, Tensor]
"""What :class:`StaticChannels` gives."""


class StaticChannels(Memo):
    """Channels that depend on the position alone: what they are, worked out once per resolution.

    The buffer ``taps``, shape (C, kernel positions + 1), holds what each position of the kernel adds, and the bias.

    Args:
        plan: the geometry of the convolution that padded them.
        activation: what follows it.

    Returns:
        The values of each channel, shape (constants + C, values), ones for constants; one where a position has a value,
        shape (values, positions), else zero; and the averages to append, shape (averaged,).
    """

    snello_leaf = True
    taps: Tensor
    inside: Tensor
    averaged: Tensor

    def __init__(self, plan: Statics, activation: nn.Module) -> None:
        super().__init__()
        self.constants = plan.constants
        self.overhangs, self.activation = Overhangs(plan), activation
        inside = taps_inside(plan)
        inside = torch.cat([inside, torch.ones(len(inside), 1)], 1)
        self.register_buffer("taps", torch.zeros(plan.channels, inside.shape[1]))
        self.register_buffer("inside", inside, persistent=False)
        averaged = torch.tensor(plan.averaged, dtype=torch.long)
        self.register_buffer("averaged", averaged, persistent=False)

    def forward(self, x: Tensor) -> Worked:
        return self.remembered((x.shape[2:], x.device), self.taps, lambda: self._work_out(x))

    def _work_out(self, x: Tensor) -> Worked:
        ways = self.overhangs.ways(x).flatten()
        used = self._used(ways, x)
        values: Tensor = self.activation(self.taps @ self.inside[used].T)
        # To choose by a product with zeros and ones takes a tenth of the time that choosing by index does.
        where = (ways == used[:, None]).to(values.dtype)
        means = (values @ where.mean(1))[self.averaged]
        return torch.cat([values.new_ones(self.constants, len(used)), values]), where, means

    def _used(self, ways: Tensor, x: Tensor) -> Tensor:
        """The ways that occur at this size: few of all, mostly."""
        if not torch.compiler.is_compiling():
            return ways.unique()  # type: ignore[no-untyped-call, no-any-return]
        known = (
            not torch.compiler.is_dynamo_compiling()
        )  # which takes a size that it is asked about for a constant
        if known and all(isinstance(size, int) for size in x.shape[2:]):
            return torch.tensor(self.overhangs.occurring(x.shape[2:]), device=x.device)
        return torch.arange(len(self.inside), device=x.device)


class AppendedMeans(nn.Module):
    """Append the averages of channels that are not made to those of the others.

    Shape: (N, C, 1, ...) to (N, C + averaged, 1, ...).
    """

    snello_leaf = True

    def forward(self, x: Tensor, static: Worked) -> Tensor:
        means = along(static[2], x, 1)
        if torch.compiler.is_exporting():  # fewer operations where the size of the batch is not known
            sides = (0, 0) * (x.dim() - 2)
            return F.pad(x, (*sides, 0, len(means))) + F.pad(means, (*sides, x.shape[1], 0))
        return torch.cat([x, means.expand(x.shape[0], -1, *x.shape[2:])], 1)


class _Gated(_ConvNd):
    """A pointwise convolution some of whose inputs were constants times a gate: the gate itself takes their place.

    The buffer ``gated``, shape (out, C of the gate, 1, ...), holds their columns times the constants. The last of
    them may have depended on the position: :class:`StaticChannels` tells what the gate is multiplied by where.

    Shape: (N, C, *) and (N, C of the gate, 1, ...) to (N, out, *).
    """

    snello_leaf = True
    gated: Tensor

    def forward(self, x: Tensor, gate: Tensor, static: Worked | None = None) -> Tensor:
        y: Tensor = super().forward(x)
        if static is None:
            return added(y, convolve(self, gate, self.gated, groups=1))
        values, where = (part.to(gate.dtype) for part in static[:2])
        # Sizes that are -1 are no operation in an exported graph; the batch's would be some.
        weighed = self.gated.flatten(1).to(gate.dtype) @ (gate.reshape(-1, len(values), 1) * values)
        return added(y, (weighed @ where).to(y.dtype).view(-1, *y.shape[1:]))


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
    """Make a narrowed convolution ready to read a gate: see :func:`snello.simplify._primitives.hold`."""
    hold(conv, _GATED, "gated", (len(outputs), channels, *conv.kernel_size), outputs)

"""Facts about the channels of the edges of a graph: signals and layouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Signal:
    """Constants among the channels of an edge, in the original network.

    Attributes:
        constant: boolean, shape (C,): the channel has one known value, at every position, for every
            input.
        value: float64, shape (C,): that value; 0 where the channel is not constant.
    """

    constant: Tensor
    value: Tensor

    @staticmethod
    def live(channels: int) -> Signal:
        """A signal without any constant."""
        return Signal(
            torch.zeros(channels, dtype=torch.bool), torch.zeros(channels, dtype=torch.float64)
        )

    @staticmethod
    def of(constant: Tensor, value: Tensor) -> Signal:
        """A signal without infinite and NaN constants: folded with weight 0 they would give NaN."""
        known = constant & value.isfinite()
        return Signal(known, torch.where(known, value, torch.zeros_like(value)))

    @property
    def zero(self) -> Tensor:
        """Boolean, shape (C,): the channel is known to be zero."""
        return self.constant & (self.value == 0)


@dataclass(frozen=True)
class Layout:
    """Channels of an edge that exist in the lean network, and their order.

    Attributes:
        order: the original index of each channel that is physically present, in physical order.
        absent: float64, shape (full width,): the constant value of each channel that is absent,
            else 0. A channel that nothing reads may be absent without being constant; its entry
            is then meaningless, and is not used.
    """

    order: Tensor
    absent: Tensor

    @property
    def width(self) -> int:
        """Number of channels in the original."""
        return len(self.absent)

    @property
    def present(self) -> Tensor:
        """Boolean, shape (full width,): the channel is physically present."""
        mask = torch.zeros(self.width, dtype=torch.bool)
        mask[self.order] = True
        return mask

    @property
    def is_empty(self) -> bool:
        """True if no channel is present."""
        return not len(self.order)

    @property
    def is_natural(self) -> bool:
        """True if every channel is present, in the original order."""
        return len(self.order) == self.width and torch.equal(self.order, torch.arange(self.width))

    @property
    def absence(self) -> Signal:
        """The absent channels as a signal: the facts that a rewrite may rely on."""
        return Signal(~self.present, self.absent)

    def arranged(self, order: Tensor) -> Layout:
        """The same edge with the given original channels present, in this order."""
        absent = self.absent.clone()
        absent[order] = 0
        return Layout(order, absent)

    def extended(self, missing: Tensor) -> Layout:
        """The layout with the absent channels of a mask appended, lowest index first."""
        extra = (missing & ~self.present).nonzero().flatten()
        return self.arranged(torch.cat([self.order, extra])) if len(extra) else self

    def without(self, channels: Tensor) -> Layout:
        """The layout with some channels removed, with value 0; boolean, shape (full width,)."""
        return Layout(self.order[~channels[self.order]], self.absent.masked_fill(channels, 0))

    def positions(self) -> Tensor:
        """Physical position of each original channel, or -1: shape (full width,)."""
        position = torch.full((self.width,), -1)
        position[self.order] = torch.arange(len(self.order))
        return position

    @staticmethod
    def whole(channels: int) -> Layout:
        """The layout with every channel, in the original order."""
        return Layout(torch.arange(channels), torch.zeros(channels, dtype=torch.float64))


def same_order(a: Layout, b: Layout) -> bool:
    """True if two edges carry the same channels in the same order."""
    return torch.equal(a.order, b.order)

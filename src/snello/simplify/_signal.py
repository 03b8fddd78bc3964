"""What travels along the edges of the graph: what is known of each channel, and which channels exist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Signal:
    """What is known of an edge's channels in the original network.

    Attributes:
        constant: boolean, shape (C,): the channel has one known value, at every position, for every input.
        value: float64, shape (C,): that value; 0 where the channel is not constant.
    """

    constant: Tensor
    value: Tensor

    @staticmethod
    def live(channels: int) -> Signal:
        """A signal of which nothing is known."""
        return Signal(torch.zeros(channels, dtype=torch.bool), torch.zeros(channels, dtype=torch.float64))

    @staticmethod
    def of(constant: Tensor, value: Tensor) -> Signal:
        """Constants whose value is not finite are not used: they would poison the folding."""
        known = constant & value.isfinite()
        return Signal(known, torch.where(known, value, torch.zeros_like(value)))

    @property
    def zero(self) -> Tensor:
        """Boolean, shape (C,): the channel is known to be zero."""
        return self.constant & (self.value == 0)


@dataclass(frozen=True)
class Layout:
    """Which channels of an edge exist in the lean network, and in which order.

    Attributes:
        order: the original index of each channel that is physically present, in physical order.
        fill: float64, shape (full width,): the constant value of each channel that is absent; else 0. A
            channel that nobody reads may be absent without being constant: its fill is read by nobody either.
    """

    order: Tensor
    fill: Tensor

    @property
    def width(self) -> int:
        """The full width: how many channels the original has."""
        return len(self.fill)

    @property
    def present(self) -> Tensor:
        """Boolean, shape (full width,): true for the channels that are physically present."""
        mask = torch.zeros(self.width, dtype=torch.bool)
        mask[self.order] = True
        return mask

    @property
    def is_natural(self) -> bool:
        """Whether every channel is present, in the original order."""
        return len(self.order) == self.width and torch.equal(self.order, torch.arange(self.width))

    @property
    def absence(self) -> Signal:
        """The absent channels as a signal: they are what the rewrite may rely on."""
        return Signal(~self.present, self.fill)

    def arranged(self, order: Tensor) -> Layout:
        """The same edge after an adapter has brought it into another order."""
        fill = self.fill.clone()
        fill[order] = 0
        return Layout(order, fill)

    def extended(self, missing: Tensor) -> Layout:
        """With the absent channels of a mask appended, lowest index first."""
        extra = (missing & ~self.present).nonzero().flatten()
        return self.arranged(torch.cat([self.order, extra])) if len(extra) else self

    def without(self, channels: Tensor) -> Layout:
        """As if some channels were not there; boolean, shape (full width,). They are given no value."""
        return Layout(self.order[~channels[self.order]], self.fill.masked_fill(channels, 0))

    def positions(self) -> Tensor:
        """For each channel of the original its physical position, or -1: shape (full width,)."""
        position = torch.full((self.width,), -1)
        position[self.order] = torch.arange(len(self.order))
        return position

    @staticmethod
    def whole(channels: int) -> Layout:
        """Every channel is present, in the original order."""
        return Layout(torch.arange(channels), torch.zeros(channels, dtype=torch.float64))


def same_order(a: Layout, b: Layout) -> bool:
    """Whether two edges carry the same channels in the same order."""
    return torch.equal(a.order, b.order)

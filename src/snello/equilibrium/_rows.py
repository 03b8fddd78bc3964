"""The frozen rows of a layer, and their view in its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Indices of the frozen and the active neurons of one layer, computed once per mask.

    Attributes:
        frozen: indices of the frozen neurons.
        active: indices of the others.
    """

    frozen: Tensor
    active: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Rows:
        """Make the indices from a boolean mask, true where frozen, shape (neurons,)."""
        return cls(mask.nonzero().flatten(), (~mask).nonzero().flatten())

    @cached_property
    def count(self) -> int:
        """Number of neurons."""
        return len(self.frozen) + len(self.active)

    @cached_property
    def all_frozen(self) -> bool:
        """True if no neuron is active."""
        return not len(self.active)

    def to(self, device: torch.device) -> Rows:
        """The same rows on another device."""
        return (
            self
            if self.frozen.device == device
            else Rows(self.frozen.to(device), self.active.to(device))
        )


def by_neuron(tensor: Tensor, axis: int | None) -> Tensor:
    """A view of a parameter, its gradient or its optimizer state with the neurons on dimension 0.

    Args:
        tensor: a tensor of the parameter's shape.
        axis: the neuron axis of the layer; see `snello.neurons.neuron_axis`.
    """
    if axis is None:
        return tensor.view(-1)
    return tensor.transpose(0, axis) if axis and tensor.dim() > 1 else tensor

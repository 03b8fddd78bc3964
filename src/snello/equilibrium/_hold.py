"""Frozen rows stand still whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = frozenset({"momentum_buffer", "exp_avg"})
"""Optimizer state that would carry a neuron on after it was frozen: it is erased."""


@dataclass(frozen=True, eq=False)
class HeldRows:
    """The frozen rows of one parameter.

    Attributes:
        parameter: the parameter.
        index: indices of its frozen neurons.
        flat: whether every entry is a neuron (LayerNorm over several dimensions), not every row.
    """

    parameter: Tensor
    index: Tensor
    flat: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape with the neurons on dimension 0."""
        return tensor.view(-1) if self.flat else tensor

    def local(self) -> HeldRows:
        """The same rows with the index where the parameter is now."""
        device = self.parameter.device
        if self.index.device == device:
            return self
        return HeldRows(self.parameter, self.index.to(device), self.flat)

    def erase(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor with these rows at zero."""
        return self.view(tensor.clone()).index_fill_(0, self.index.to(tensor.device), 0).view_as(tensor)


class RowHold:
    """Keeps rows of parameters bit-identical through every step of an optimizer.

    Before a step the frozen rows, and their rows of optimizer state of the same shape, are set aside; after
    it they are put back, and the momentum of the frozen rows is erased. So neither weight decay, nor
    momentum, nor a gradient that came by another way than the layer can move them. The hooks know the
    parameters only, never the model, and stay with the optimizer until :meth:`remove`.

    Args:
        optimizer: any optimizer of ``torch.optim``.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._held: list[HeldRows] = []
        self._aside: list[tuple[HeldRows, Tensor, Tensor]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def set(self, held: Iterable[HeldRows]) -> None:
        """Hold these rows, and no others, from now on."""
        self._held = list(held)

    def remove(self) -> None:
        """Let go, and take the hooks off the optimizer."""
        self._held, self._aside = [], []
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._held = [held.local() for held in self._held]  # the model may have moved
        self._aside = [
            (held, tensor, held.view(tensor).index_select(0, held.index))
            for held in self._held
            for tensor in (held.parameter, *_row_state(optimizer, held.parameter, erased=False))
        ]

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for held, tensor, values in self._aside:
            held.view(tensor).index_copy_(0, held.index, values)
        self._aside = []
        for held in self._held:
            for state in _row_state(optimizer, held.parameter, erased=True):
                held.view(state).index_fill_(0, held.index, 0)


def _row_state(optimizer: Optimizer, parameter: Tensor, *, erased: bool) -> list[Tensor]:
    """Optimizer state with one entry per entry of the parameter: what is erased, or what is kept."""
    return [
        state
        for key, state in optimizer.state.get(parameter, {}).items()
        if isinstance(state, Tensor) and state.shape == parameter.shape and (key in MOMENTUM) is erased
    ]

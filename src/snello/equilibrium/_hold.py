"""Frozen rows stand still whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from snello.equilibrium._rows import by_neuron

MOMENTUM = frozenset({"momentum_buffer", "exp_avg"})
"""Optimizer state that would carry a neuron on after it was frozen: it is erased."""


@dataclass(frozen=True, eq=False)
class HeldRows:
    """The frozen rows of one parameter.

    Attributes:
        parameter: the parameter.
        index: indices of its frozen neurons.
        axis: where its neurons lie; see ``neuron_axis``.
    """

    parameter: Tensor
    index: Tensor
    axis: int | None = 0

    def view(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape with the neurons on dimension 0."""
        return by_neuron(tensor, self.axis)

    def local(self) -> HeldRows:
        """The same rows with the index where the parameter is now."""
        device = self.parameter.device
        if self.index.device == device:
            return self
        return HeldRows(self.parameter, self.index.to(device), self.axis)


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
        self._optimizer = optimizer
        self._held: list[HeldRows] = []
        self._aside: list[tuple[HeldRows, Tensor, Tensor]] = []
        self._stepping: list[HeldRows] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def set(self, held: Iterable[HeldRows]) -> None:
        """Hold these rows, and no others, from now on; they lose their momentum here."""
        self._held = list(held)
        for rows in self._held:
            self._erase_momentum(rows.local())

    def remove(self) -> None:
        """Let go, and take the hooks off the optimizer."""
        self._held, self._aside, self._stepping = [], [], []
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._held = [held.local() for held in self._held]  # the model may have moved
        # An optimizer passes over a parameter without a gradient, so that nothing has to be set aside.
        self._stepping = [held for held in self._held if held.parameter.grad is not None]
        self._aside = [
            (held, tensor, held.view(tensor).index_select(0, held.index))
            for held in self._stepping
            for tensor in (held.parameter, *_row_state(optimizer, held.parameter, erased=False))
        ]

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for held, tensor, values in self._aside:
            held.view(tensor).index_copy_(0, held.index, values)
        for held in self._stepping:
            self._erase_momentum(held)
        self._aside, self._stepping = [], []

    @torch.no_grad()
    def _erase_momentum(self, held: HeldRows) -> None:
        for state in _row_state(self._optimizer, held.parameter, erased=True):
            held.view(state).index_fill_(0, held.index, 0)


def _row_state(optimizer: Optimizer, parameter: Tensor, *, erased: bool) -> list[Tensor]:
    """Optimizer state with one entry per entry of the parameter: what is erased, or what is kept."""
    return [
        state
        for key, state in optimizer.state.get(parameter, {}).items()
        if isinstance(state, Tensor) and state.shape == parameter.shape and (key in MOMENTUM) is erased
    ]

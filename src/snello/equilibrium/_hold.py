"""Frozen rows stand still whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from snello.equilibrium._rows import by_neuron
from snello.optimizers import follow_steps, parameters_of, unfollow_steps

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


@dataclass(frozen=True, eq=False)
class _Aside:
    """Values set aside before a step: the rows that may move, and each tensor with the values to
    put back.
    """

    stepping: list[HeldRows]
    values: list[tuple[HeldRows, Tensor, Tensor]]


_NESTED = 4
"""Steps of one optimizer within one another that are told apart: a step that raised never ends."""


class RowHold:
    """Keeps rows of parameters bit-identical through every step of every optimizer.

    Before a step the frozen rows, and their rows of optimizer state of the same shape, are set
    aside; after it they are put back, and the momentum of the frozen rows is erased. So neither
    weight decay, nor momentum, nor a gradient that came by another way than the layer can move
    them. It knows the parameters only, never the model.

    Args:
        optimizers: those that are known to train the parameters. Others are met when they step.
    """

    def __init__(self, optimizers: Iterable[Optimizer] = ()) -> None:
        self._optimizers = WeakSet(optimizers)
        self._held: list[HeldRows] = []
        # A subclass that calls the step of its base class has one step within the other.
        self._aside: WeakKeyDictionary[Optimizer, list[_Aside]] = WeakKeyDictionary()
        follow_steps(self)

    def set(self, held: Iterable[HeldRows]) -> None:
        """Hold these rows, and no others, from now on; they lose their momentum here."""
        self._held = list(held)
        with torch.no_grad():
            for optimizer in self._optimizers:
                for rows in self._held:
                    _erase_momentum(optimizer, rows.local())

    def remove(self) -> None:
        """Let go."""
        self._held, self._aside = [], WeakKeyDictionary()
        unfollow_steps(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the optimizers step for a while as if nothing were held."""
        unfollow_steps(self)
        try:
            yield
        finally:
            follow_steps(self)

    def before(self, optimizer: Optimizer, closure: bool) -> None:
        """Set aside what an optimizer is about to move."""
        if not self._held:
            return
        self._held = [held.local() for held in self._held]  # the model may have moved
        own = {id(parameter) for parameter in parameters_of(optimizer)}
        # An optimizer passes over a parameter without a gradient, so that nothing has to be set
        # aside; but a closure computes gradients within the step.
        stepping = [
            held
            for held in self._held
            if id(held.parameter) in own and (closure or held.parameter.grad is not None)
        ]
        values = [
            (held, tensor, held.view(tensor).index_select(0, held.index))
            for held in stepping
            for tensor in (held.parameter, *_row_state(optimizer, held.parameter, erased=False))
        ]
        open_steps = self._aside.setdefault(optimizer, [])
        open_steps.append(_Aside(stepping, values))
        del open_steps[:-_NESTED]

    def after(self, optimizer: Optimizer) -> None:
        """Put back what was set aside."""
        open_steps = self._aside.get(optimizer)
        if not open_steps:
            return
        self._optimizers.add(optimizer)
        aside = open_steps.pop()
        for held, tensor, values in aside.values:
            held.view(tensor).index_copy_(0, held.index, values)
        for held in aside.stepping:
            _erase_momentum(optimizer, held)


def _erase_momentum(optimizer: Optimizer, held: HeldRows) -> None:
    for state in _row_state(optimizer, held.parameter, erased=True):
        held.view(state).index_fill_(0, held.index, 0)


def _row_state(optimizer: Optimizer, parameter: Tensor, *, erased: bool) -> list[Tensor]:
    """Optimizer state with one entry per entry of the parameter: what is erased, or what is
    kept.
    """
    return [
        state
        for key, state in optimizer.state.get(parameter, {}).items()
        if isinstance(state, Tensor)
        and state.shape == parameter.shape
        and (key in MOMENTUM) is erased
    ]

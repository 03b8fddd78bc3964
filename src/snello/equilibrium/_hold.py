"""Frozen rows, kept bit-identical through any optimizer's steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from snello.optimizers import StepFollower, follow_steps, parameters_of, unfollow_steps

from ._rows import by_neuron

MOMENTUM = frozenset({"momentum_buffer", "exp_avg"})
"""Optimizer state that is erased in frozen rows: it would change them as soon as they thaw."""


@dataclass(frozen=True, eq=False)
class HeldRows:
    """The frozen rows of one parameter.

    Attributes:
        parameter: the parameter.
        index: indices of its frozen neurons.
        axis: dimension of its neurons; see `snello.neurons.neuron_axis`.
    """

    parameter: Tensor
    index: Tensor
    axis: int | None = 0

    def view(self, tensor: Tensor) -> Tensor:
        """A tensor of the parameter's shape with the neurons on dimension 0."""
        return by_neuron(tensor, self.axis)

    def local(self) -> HeldRows:
        """The same rows, with the index on the present device of the parameter."""
        device = self.parameter.device
        if self.index.device == device:
            return self
        return HeldRows(self.parameter, self.index.to(device), self.axis)


@dataclass(frozen=True, eq=False)
class _Aside:
    """Copies made before a step, to be restored after it.

    Attributes:
        stepping: rows of the parameters that the step may change.
        values: rows, tensor (a parameter or its state), and the values to restore in them.
    """

    stepping: list[HeldRows]
    values: list[tuple[HeldRows, Tensor, Tensor]]


_NESTED = 4
"""Largest number of open steps kept per optimizer, because a step that raised is never closed."""


class RowHold(StepFollower):
    """Keep rows of parameters bit-identical through every step of every optimizer.

    Before a step the frozen rows, and the same rows of the optimizer state, are copied; after it
    they are restored, and their momentum is erased. So neither weight decay nor momentum nor a
    gradient from outside the layer (a penalty, for example) can change them.

    Args:
        optimizers: optimizers of the parameters. Others are added at their first step.
    """

    def __init__(self, optimizers: Iterable[Optimizer] = ()) -> None:
        self._optimizers = WeakSet(optimizers)
        self._held: list[HeldRows] = []
        # A stack, because step() of a subclass may call that of its base class.
        self._aside: WeakKeyDictionary[Optimizer, list[_Aside]] = WeakKeyDictionary()

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers that have been given, or have stepped with held rows."""
        return tuple(self._optimizers)

    def set(self, held: Iterable[HeldRows]) -> None:
        """Replace the held rows by these, and erase their momentum."""
        self._held = list(held)
        # Without held rows not even the call before and after each step.
        (follow_steps if self._held else unfollow_steps)(self)
        with torch.no_grad():
            for optimizer in self._optimizers:
                for rows in self._held:
                    _erase_momentum(optimizer, rows.local())

    def remove(self) -> None:
        """Stop holding rows."""
        self._held, self._aside = [], WeakKeyDictionary()
        unfollow_steps(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold no rows inside the block."""
        unfollow_steps(self)
        try:
            yield
        finally:
            if self._held:
                follow_steps(self)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the rows at the end of the block."""
        values = [
            (held, held.view(held.parameter.detach()).index_select(0, held.index))
            for held in self._local()
        ]
        yield
        with torch.no_grad():
            for held, before in values:
                held.view(held.parameter).index_copy_(0, held.index, before)

    def _local(self) -> list[HeldRows]:
        """The held rows; the model may be on another device than when they were set."""
        self._held = [held.local() for held in self._held]
        return self._held

    def before(self, optimizer: Optimizer, closure: bool) -> None:
        """Copy the held rows that an optimizer is about to change."""
        if not self._held:
            return
        own = {id(parameter) for parameter in parameters_of(optimizer)}
        # An optimizer skips a parameter without a gradient, so no copy is needed; but a closure
        # computes gradients within the step.
        stepping = [
            held
            for held in self._local()
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
        """Restore the rows copied before the step."""
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
    """Optimizer state of the parameter's shape: the momentum, or all but the momentum."""
    return [
        state
        for key, state in optimizer.state.get(parameter, {}).items()
        if isinstance(state, Tensor)
        and state.shape == parameter.shape
        and (key in MOMENTUM) is erased
    ]

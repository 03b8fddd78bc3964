"""Freezing by masks: sparse gradients in the layers, held rows in the optimizer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snello.errors import ConfigError
from snello.neurons import neuron_axis, neuron_count
from snello.optimizers import Optimizers, check_trained, optimizers_of

from ._dispatch import Dispatch
from ._hold import HeldRows, RowHold
from ._sparse import attach, detach
from ._whole import Whole, attach_whole, detach_whole


class Freezer:
    """Freezes and unfreezes neurons of a model in training.

    Args:
        layers: layer name -> Linear, convolution, BatchNorm or LayerNorm.
        optimizers: one optimizer, several, or none yet.
        dispatch: decides where only the active rows are computed.
        wholes: the modules around them that rest with their layers.

    Raises:
        ConfigError: if a parameter of the layers is trained, but by none of the optimizers given.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        optimizers: Optimizers,
        dispatch: Dispatch | None = None,
        wholes: Collection[Whole] = (),
    ) -> None:
        self.layers, self.dispatch = dict(layers), dispatch or Dispatch()
        self._wholes = tuple(wholes)
        self.optimizers = self._checked(optimizers)
        self._frozen = {name: _nothing(layer) for name, layer in layers.items()}
        self.resting: tuple[str, ...] = ()
        self.hold = RowHold(self.optimizers)

    def _checked(self, optimizers: Optimizers) -> tuple[Optimizer, ...]:
        found = optimizers_of(optimizers, "NEq")
        parameters = {
            f"{name}.{key}": parameter
            for name, layer in self.layers.items()
            for key, parameter in layer.named_parameters(recurse=False)
        }
        check_trained(parameters, found, "NEq")
        return found

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Layer name -> boolean copy of its mask, shape `(neurons,)`, true where frozen."""
        return {name: mask.clone() for name, mask in self._frozen.items()}

    def apply(self, frozen: Mapping[str, Tensor]) -> None:
        """Freeze neurons by masks; all neurons of a layer without a mask are unfrozen.

        Raises:
            ConfigError: for an unknown layer, or a mask that is not boolean of shape
                `(neurons,)`.
        """
        for name, mask in frozen.items():
            self.check(name, mask)
        self._frozen = {
            name: frozen[name].detach().clone() if name in frozen else _nothing(layer)
            for name, layer in self.layers.items()
        }
        self.resting = tuple(name for name, mask in self._frozen.items() if bool(mask.all()))
        rows = [held for name in self.layers for held in self._rows(name)]
        self.hold.set([*rows, *map(_all_rows, self._own())])
        for parameter in self.resting_parameters():
            # Optimizers skip parameters without a gradient, but not those whose gradient is zero.
            parameter.grad = None
        self._attach()

    def remove(self) -> None:
        """Undo everything: classes, gradient hooks, optimizer hooks."""
        self._detach()
        self.hold.remove()
        self._frozen = {name: _nothing(layer) for name, layer in self.layers.items()}
        self.resting = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Freeze the neurons of a copied model as well: hooks and changed classes are not copied."""
        vars(self).update(state, hold=RowHold(state["optimizers"]))
        self.apply(self._frozen)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Use the plain layers inside the block; optimizer steps still keep the frozen rows."""
        self._detach()
        try:
            yield
        finally:
            self._attach()

    def _attach(self) -> None:
        for name, layer in self.layers.items():
            attach(layer, self._frozen[name], self.dispatch, self.hold)
        for whole in self._wholes:
            attach_whole(whole, self.resting, self.hold)

    def _detach(self) -> None:
        for layer in self.layers.values():
            detach(layer)
        for whole in self._wholes:
            detach_whole(whole.module)

    def drop_state(self) -> int:
        """Drop the optimizer state of all parameters at rest; return its size in bytes."""
        resting = self.resting_parameters()
        states = [o.state.pop(p, {}) for o in self.hold.optimizers for p in resting]
        values = [value for state in states for value in state.values()]
        return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))

    def resting_parameters(self) -> list[Tensor]:
        """All parameters that get no gradient: of the layers frozen whole, and of their modules."""
        layers = [self.layers[name] for name in self.resting]
        return [*(p for layer in layers for p in layer.parameters(recurse=False)), *self._own()]

    def _own(self) -> Iterator[Tensor]:
        for whole in self._wholes:
            yield from whole.own_parameters(self.resting)

    def _rows(self, name: str) -> list[HeldRows]:
        layer, index = self.layers[name], self._frozen[name].nonzero().flatten()
        if not len(index):
            return []
        axis = neuron_axis(layer)
        # Also without requires_grad: the user may give them to an optimizer before the next masks.
        return [HeldRows(p, index.to(p.device), axis) for p in layer.parameters(recurse=False)]

    def check(self, name: str, mask: object) -> None:
        """Refuse a mask of an unknown layer, or one that is not boolean of shape `(neurons,)`."""
        if name not in self.layers:
            raise ConfigError(
                f"mask {name!r}: no such watched layer; they are: {', '.join(self.layers)}"
            )
        count = neuron_count(self.layers[name])
        if isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.shape == (count,):
            return
        found = f"a {type(mask).__name__}"
        if isinstance(mask, Tensor):
            found = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ConfigError(
            f"mask {name!r}: must be a boolean tensor of shape ({count},), true where frozen, not {found}"
        )


def _all_rows(parameter: Tensor) -> HeldRows:
    count = len(parameter) if parameter.dim() else 1
    return HeldRows(parameter, torch.arange(count, device=parameter.device))


def _nothing(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.new_zeros(neuron_count(layer)).bool()

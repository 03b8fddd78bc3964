"""Imposes masks: sparse gradients in the layers, still rows in the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snello.equilibrium._dispatch import Dispatch
from snello.equilibrium._hold import HeldRows, RowHold
from snello.equilibrium._rows import neuron_axis
from snello.equilibrium._sparse import attach, detach
from snello.errors import ConfigError
from snello.neurons import neuron_count


class Freezer:
    """Freezes and unfreezes neurons of a model that one optimizer trains.

    Args:
        layers: layer name -> Linear, convolution, BatchNorm or LayerNorm.
        optimizer: the optimizer that holds their parameters.
        dispatch: decides where computing the active rows alone pays.

    Raises:
        ConfigError: if the optimizer holds none of their parameters.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], optimizer: Optimizer, dispatch: Dispatch | None = None
    ) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in held for layer in layers.values() for p in layer.parameters(recurse=False)):
            raise ConfigError(
                "optimizer: it holds no parameter of the watched layers; build it from the parameters of "
                "this very model, not of a copy"
            )
        self.layers, self.dispatch = dict(layers), dispatch or Dispatch()
        self._frozen = {name: _nothing(layer) for name, layer in layers.items()}
        self._hold = RowHold(optimizer)

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Layer name -> boolean copy of its mask, shape ``(neurons,)``, true where frozen."""
        return {name: mask.clone() for name, mask in self._frozen.items()}

    def apply(self, frozen: Mapping[str, Tensor]) -> None:
        """Impose masks; a layer without one is free.

        Raises:
            ConfigError: for an unknown layer, or a mask that is not boolean of shape ``(neurons,)``.
        """
        for name, mask in frozen.items():
            self._check(name, mask)
        self._frozen = {
            name: frozen[name].detach().clone() if name in frozen else _nothing(layer)
            for name, layer in self.layers.items()
        }
        self._hold.set(held for name in self.layers for held in self._rows(name))
        self._attach()

    def remove(self) -> None:
        """Undo everything: classes, gradient hooks, optimizer hooks."""
        self._detach()
        self._hold.remove()
        self._frozen = {name: _nothing(layer) for name, layer in self.layers.items()}

    @contextmanager
    def dense(self) -> Iterator[None]:
        """The plain layers for a while, as if nothing were frozen; the optimizer goes on holding the rows."""
        self._detach()
        try:
            yield
        finally:
            self._attach()

    def _attach(self) -> None:
        for name, layer in self.layers.items():
            attach(layer, self._frozen[name], self.dispatch)

    def _detach(self) -> None:
        for layer in self.layers.values():
            detach(layer)

    def _rows(self, name: str) -> list[HeldRows]:
        layer, index = self.layers[name], self._frozen[name].nonzero().flatten()
        if not len(index):
            return []
        axis = neuron_axis(layer)
        trained = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        return [HeldRows(p, index.to(p.device), axis) for p in trained]

    def _check(self, name: str, mask: Tensor) -> None:
        if name not in self.layers:
            raise ConfigError(f"mask {name!r}: no such watched layer; they are: {', '.join(self.layers)}")
        count = neuron_count(self.layers[name])
        if mask.dtype is not torch.bool or mask.shape != (count,):
            raise ConfigError(
                f"mask {name!r}: must be boolean of shape ({count},), true where frozen, "
                f"not {mask.dtype} of shape {tuple(mask.shape)}"
            )


def _nothing(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.new_zeros(neuron_count(layer)).bool()

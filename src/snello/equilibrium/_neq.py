"""The object of the training loop: probe, decide, freeze, once an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snello.equilibrium._flops import layer_macs, paper_flops
from snello.equilibrium._freezer import Freezer
from snello.equilibrium._layers import monitored_layers
from snello.equilibrium._probe import Probe, similarity
from snello.equilibrium._selection import Selection, Velocity
from snello.errors import ConfigError, DivergenceError
from snello.neurons import neuron_count


@dataclass(frozen=True)
class EquilibriumStep:
    """What one call of ``step()`` decided for the next epoch.

    Attributes:
        epoch: number of epochs trained so far.
        updated: layer name -> share of its neurons that go on learning, in [0, 1].
        total: the same over all watched neurons.
        flops: backward FLOPs per sample of the next epoch in the paper's convention (weight gradients only;
            see ``backward_flops`` for what is really executed).
        dense_flops: the same with nothing frozen.
    """

    epoch: int
    updated: dict[str, float]
    total: float
    flops: float
    dense_flops: float


class SelectiveUpdate:
    """Freezes, epoch by epoch, the neurons that a selection names.

    Frozen neurons keep their weights bit for bit, through momentum and weight decay; they still work in the
    forward pass, and BatchNorm statistics still move. The masks stay in force until :meth:`remove`.

    Eager mode, one process: ``torch.compile``, activation checkpointing and DDP are not supported yet.

    Args:
        model: the model in training. Its parameters are never replaced.
        optimizer: the optimizer that trains it.
        probe: a few training inputs under evaluation transforms, a tensor or a tuple of tensors, the same for
            the whole training. The outputs of all watched layers on it are kept in memory.
        selection: the rule that names the frozen neurons.
        warmup: number of first epochs in which every neuron learns, at least 1.
        exclude: names of layers that always learn. The head always does.

    Attributes:
        model: the model.
        left_alone: layer name -> why its neurons always learn.

    Raises:
        ConfigError: for an impossible option, or an optimizer of another model.
        ModelError: if the model does not run on the probe.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        probe: Tensor | tuple[Tensor, ...],
        selection: Selection,
        *,
        warmup: int = 1,
        exclude: Iterable[str] = (),
    ) -> None:
        if warmup < 1:
            raise ConfigError(f"warmup: must be at least 1, not {warmup}; nothing is known before one epoch")
        self.model, self.selection, self.warmup = model, selection, warmup
        layers, self.left_alone = monitored_layers(model, exclude)
        self._probe = Probe(model, probe)
        self._macs = layer_macs(model, self._probe)
        for name in [name for name in layers if name not in self._macs]:
            # MultiheadAttention and others use the weights without calling the layer.
            self.left_alone[name] = "the forward never calls it as a module"
            del layers[name]
        self._neurons = {name: neuron_count(layer) for name, layer in layers.items()}
        self.freezer = Freezer(layers, optimizer)
        self._reference = self._probe.outputs(layers) if selection.observes else {}
        self._epoch = 0

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Layer name -> boolean tensor of shape ``(neurons,)``, true where the neuron is frozen now."""
        return self.freezer.frozen

    def apply(self, frozen: Mapping[str, Tensor]) -> None:
        """Impose masks until the next :meth:`step`.

        Args:
            frozen: layer name -> boolean tensor of shape ``(neurons,)``; layers without one are free.

        Raises:
            ConfigError: for an unknown layer or a mask of another shape or dtype.
        """
        self.freezer.apply(frozen)

    def step(self) -> EquilibriumStep:
        """Call once at the end of every epoch: decides which neurons learn in the next one.

        Raises:
            DivergenceError: if the probe outputs of a layer are not finite.
        """
        similarities = self._similarities() if self.selection.observes else {}
        masks = self.selection.select(self._neurons, similarities)
        self._epoch += 1
        self.freezer.apply(masks if self._epoch >= self.warmup else {})
        return self.status()

    def status(self) -> EquilibriumStep:
        """What is frozen now, and what the next epoch costs."""
        masks = self.freezer.frozen
        learning = {name: len(mask) - int(mask.sum()) for name, mask in masks.items()}
        updated = {name: count / self._neurons[name] for name, count in learning.items()}
        return EquilibriumStep(
            epoch=self._epoch,
            updated=updated,
            total=sum(learning.values()) / sum(self._neurons.values()),
            flops=paper_flops(self._macs, updated),
            dense_flops=paper_flops(self._macs, {}),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the coming masks depend on, as tensors and primitives.

        It holds the probe outputs of the last epoch, and so is as large as the probe's activations.
        """
        return {
            "epoch": self._epoch,
            "frozen": self.frozen,
            "reference": {name: outputs.clone() for name, outputs in self._reference.items()},
            "selection": self.selection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the model and the optimizer load their own.

        Raises:
            ConfigError: if it belongs to other layers or another probe.
        """
        self._check_state(state)
        self.freezer.apply(state["frozen"])
        self._epoch = int(state["epoch"])
        self._reference = {
            name: outputs.to(self._reference[name], copy=True) for name, outputs in state["reference"].items()
        }
        self.selection.load_state_dict(state["selection"])

    def remove(self) -> None:
        """Undo everything: layers, gradients and optimizer are those of a plain training again."""
        self.freezer.remove()

    def _similarities(self) -> dict[str, Tensor]:
        now = self._probe.outputs(self.freezer.layers)
        phi = {name: similarity(outputs, self._reference[name]) for name, outputs in now.items()}
        for name, values in phi.items():
            if not torch.isfinite(values).all():
                raise DivergenceError(
                    f"layer {name!r}: its outputs on the probe are not finite after epoch {self._epoch + 1}; "
                    "lower the learning rate"
                )
        self._reference = now
        return phi

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if missing := {"epoch", "frozen", "reference", "selection"} - set(state):
            raise ConfigError(f"state_dict: lacks {', '.join(sorted(missing))}; it is no state of NEq")
        if other := set(state["frozen"]) ^ set(self._neurons):
            raise ConfigError(
                f"state_dict: belongs to other layers; they differ in: {', '.join(sorted(other))}"
            )
        shapes = {name: tuple(x.shape) for name, x in state["reference"].items()}
        own = {name: tuple(x.shape) for name, x in self._reference.items()}
        if shapes != own:
            differing = sorted(n for n in {*shapes, *own} if shapes.get(n) != own.get(n))
            raise ConfigError(
                f"state_dict: its probe outputs do not fit this probe in layer {differing[0]!r}: "
                f"{shapes.get(differing[0])} is not {own.get(differing[0])}; resume with the same probe"
            )


class NEq(SelectiveUpdate):
    """NEq: neurons whose answers have stopped changing pay for no weight gradient.

    :class:`SelectiveUpdate` with the :class:`Velocity` rule.

    Args:
        model: the model in training.
        optimizer: the optimizer that trains it.
        probe: a few training inputs under evaluation transforms; the paper's ResNet-32 uses 50.
        eps: bound on the velocity below which a neuron is at equilibrium.
        mu: weight of the last velocity.
        warmup: number of first epochs in which every neuron learns, at least 1.
        exclude: names of layers that always learn.

    Source: Bragagnolo, Tartaglione, Grangetto, "To update or not to update? Neurons at equilibrium in deep
    models", NeurIPS 2022.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        probe: Tensor | tuple[Tensor, ...],
        *,
        eps: float = 1e-3,
        mu: float = 0.5,
        warmup: int = 1,
        exclude: Iterable[str] = (),
    ) -> None:
        super().__init__(model, optimizer, probe, Velocity(eps, mu), warmup=warmup, exclude=exclude)

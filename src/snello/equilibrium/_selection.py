"""The interface of selections of neurons to freeze, and NEq's rule."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from snello.errors import ConfigError, check_state

Formula = Literal["paper", "released"]


@dataclass(frozen=True)
class WatchedLayer:
    """The facts about a layer that a selection is given.

    Attributes:
        neurons: number of its neurons.
        parameters: trained parameters of each of its neurons, bias included.
    """

    neurons: int
    parameters: int


class Selection(Protocol):
    """A rule that decides, once a step, which neurons are frozen until the next one.

    A rule that observes may also have a method `observe(outputs)`. It is called with the probe's
    outputs, layer name -> shape `(samples, channels, positions)`, at the start and before each
    `select`.
    """

    @property
    def observes(self) -> bool:
        """True if the rule uses similarities, so that the probe must run at every step."""

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the next masks.

        Args:
            layers: layer name -> the layer, in the order in which the forward first calls them.
            similarities: layer name -> phi of shape `(neurons,)`; empty unless the rule observes.

        Returns:
            Layer name -> boolean tensor of shape `(neurons,)`, true where the neuron is frozen. A
            layer without a mask learns.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state on which the next decisions depend, as tensors and primitives."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""


class Velocity:
    r"""NEq's rule: a neuron is at equilibrium when its similarity has stopped changing.

    With $\Delta\varphi^t = \varphi^t - \varphi^{t-1}$, a neuron is frozen when
    $|v^t| < \varepsilon$, where

    $$\text{paper:}\quad v^t = \Delta\varphi^t - \mu\,v^{t-1}$$
    $$\text{released:}\quad v^t = \mu\,v^{t-1} + \Delta\varphi^t - \Delta\varphi^{t-1}$$

    Initially $\varphi = 1$ and $\Delta\varphi = v = 0$. The two formulas differ: the
    released one is the smoothed *second* difference of phi, so a neuron whose similarity grows
    steadily is at equilibrium there, but not in the paper.

    Args:
        eps: the bound on the velocity; 0 freezes nothing.
        mu: the weight of the last velocity, in [0, 1).
        formula: "paper", the equation as published; or "released", what the authors' code computes.
        smoothing: weight of the past in a moving average of the similarities, in [0, 1), whose
            velocity is taken; 0 for the similarities themselves, as published. With a decision
            every few iterations, single similarities are noisy.

    Source: Bragagnolo, Tartaglione, Grangetto, "To update or not to update? Neurons at equilibrium
    in deep models", NeurIPS 2022, section 3, and the code at https://github.com/EIDOSLAB/NEq.
    """

    observes = True

    def __init__(
        self,
        eps: float = 1e-3,
        mu: float = 0.5,
        formula: Formula = "paper",
        *,
        smoothing: float = 0.0,
    ) -> None:
        if not eps >= 0:
            raise ConfigError(f"eps: must be at least 0, not {eps}; the paper uses 1e-3")
        if not 0 <= mu < 1:
            raise ConfigError(f"mu: must be in [0, 1), not {mu}; the paper uses 0.5")
        if formula not in get_args(Formula):
            raise ConfigError(
                f"formula: must be one of {', '.join(get_args(Formula))}, not {formula!r}"
            )
        if not 0 <= smoothing < 1:
            raise ConfigError(f"smoothing: must be in [0, 1), not {smoothing}")
        self.eps, self.mu, self.formula, self.smoothing = eps, mu, formula, smoothing
        self._phi: dict[str, Tensor] = {}
        self._change: dict[str, Tensor] = {}
        self._velocity: dict[str, Tensor] = {}

    @property
    def phi(self) -> dict[str, Tensor]:
        """Layer name -> the last similarities, smoothed, shape `(neurons,)`; empty at the start."""
        return copied(self._phi)

    @property
    def velocity(self) -> dict[str, Tensor]:
        """Layer name -> the last velocities, shape `(neurons,)`; empty before the first step."""
        return copied(self._velocity)

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Advance the velocities by one step; see [`Selection`][snello.equilibrium.Selection]."""
        for name in layers:
            self._advance(name, similarities[name])
        return {name: self._velocity[name].abs() < self.eps for name in layers}

    def _advance(self, name: str, phi: Tensor) -> None:
        rest = torch.zeros_like(phi)
        last = self._phi.get(name, rest + 1).to(phi)
        phi = phi.lerp(last, self.smoothing)
        change = phi - last
        before = self.mu * self._velocity.get(name, rest).to(phi)
        if self.formula == "paper":
            velocity = change - before
        else:
            velocity = before + change - self._change.get(name, rest).to(phi)
        self._phi[name], self._change[name], self._velocity[name] = phi, change, velocity

    def state_dict(self) -> dict[str, Any]:
        """Similarities, their last changes and velocities."""
        return {
            "phi": copied(self._phi),
            "change": copied(self._change),
            "velocity": copied(self._velocity),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        names = ("phi", "change", "velocity")
        check_state(state, dict.fromkeys(names, dict[str, Tensor]), type(self).__name__)
        self._phi, self._change = copied(state["phi"]), copied(state["change"])
        self._velocity = copied(state["velocity"])


def check_selection(given: object, what: str) -> None:
    """Refuse anything but an object with the methods of a selection, also a class of them.

    Raises:
        ConfigError: beginning with the name of the argument, `what`.
    """
    parts = ("observes", "select", "state_dict", "load_state_dict")
    if isinstance(given, type) or not all(hasattr(given, part) for part in parts):
        found = given.__name__ if isinstance(given, type) else f"a {type(given).__name__}"
        raise ConfigError(
            f"{what}: must be a selection, such as Velocity(), with {', '.join(parts)}; not {found}"
        )


def show(selection: object, outputs: Mapping[str, Tensor]) -> None:
    """Call a selection's optional `observe` with the probe's outputs."""
    observe = getattr(selection, "observe", None)
    if observe is not None:
        observe(outputs)


def whole_layers(layers: Mapping[str, WatchedLayer], resting: Collection[str]) -> dict[str, Tensor]:
    """Masks that freeze all neurons of some layers, and none of the others."""
    return {name: torch.full((layer.neurons,), name in resting) for name, layer in layers.items()}


def share_of(mask: Tensor | None) -> float:
    """Frozen share of a layer; 0 without a mask."""
    return 0.0 if mask is None or not len(mask) else int(mask.sum()) / len(mask)


def part_of(share: float, count: int) -> int:
    """The share of a number, rounded down; 0.29 of 100 is 29, although the product is below it."""
    return int(share * count + 1e-9)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a mapping with its tensors."""
    return {name: tensor.clone() for name, tensor in tensors.items()}

"""Who is frozen next epoch: the velocity rule of NEq, and the random baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from snello.errors import ConfigError


class Selection(Protocol):
    """A rule that says, once an epoch, which neurons are frozen during the next one."""

    @property
    def observes(self) -> bool:
        """Whether the rule looks at similarities, so that the probe must run every epoch."""

    def select(self, neurons: Mapping[str, int], similarities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next masks.

        Args:
            neurons: layer name -> number of neurons.
            similarities: layer name -> phi of shape ``(neurons,)``; empty unless the rule observes.

        Returns:
            Layer name -> boolean tensor of shape ``(neurons,)``, true where the neuron is frozen.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything the next decisions depend on: tensors and primitives."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""


class Velocity:
    r"""NEq's rule: a neuron is at equilibrium when its similarity has stopped changing.

    .. math:: v^t = \Delta\varphi^t - \mu\,v^{t-1}, \qquad \Delta\varphi^t = \varphi^t - \varphi^{t-1},
        \qquad \text{frozen} \iff |v^t| < \varepsilon

    with :math:`\varphi^0 = 1` and :math:`v^0 = 0`: before training a neuron is like itself.

    Args:
        eps: the bound on the velocity; 0 freezes nothing.
        mu: the weight of the last velocity, in [0, 1).

    Source: Bragagnolo, Tartaglione, Grangetto, "To update or not to update? Neurons at equilibrium in deep
    models", NeurIPS 2022. The code released with the paper keeps :math:`\mu v^{t-1} + \Delta\varphi^t -
    \Delta\varphi^{t-1}` instead; here the paper's equation is used.
    """

    observes = True

    def __init__(self, eps: float = 1e-3, mu: float = 0.5) -> None:
        if not eps >= 0:
            raise ConfigError(f"eps: must be at least 0, not {eps}; the paper uses 1e-3")
        if not 0 <= mu < 1:
            raise ConfigError(f"mu: must be in [0, 1), not {mu}; the paper uses 0.5")
        self.eps, self.mu = eps, mu
        self._phi: dict[str, Tensor] = {}
        self._velocity: dict[str, Tensor] = {}

    @property
    def velocity(self) -> dict[str, Tensor]:
        """Layer name -> the last velocities, shape ``(neurons,)``; empty before the first epoch."""
        return {name: v.clone() for name, v in self._velocity.items()}

    def select(self, neurons: Mapping[str, int], similarities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Advance the velocities by one epoch; see :class:`Selection`."""
        frozen = {}
        for name in neurons:
            phi = similarities[name]
            last = self._phi.get(name, torch.ones_like(phi)).to(phi)
            before = self._velocity.get(name, torch.zeros_like(phi)).to(phi)
            velocity = (phi - last) - self.mu * before
            self._phi[name], self._velocity[name] = phi, velocity
            frozen[name] = velocity.abs() < self.eps
        return frozen

    def state_dict(self) -> dict[str, Any]:
        """Similarities and velocities of the last epoch."""
        return {"phi": _copied(self._phi), "velocity": _copied(self._velocity)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._phi, self._velocity = _copied(state["phi"]), _copied(state["velocity"])


class Stochastic:
    """The random baseline: ``int(p * neurons)`` neurons of every layer, drawn anew each epoch.

    Args:
        p: share of each layer to freeze, in [0, 1].
        seed: seed of its own generator; the global generators are not touched.

    Source: the Stochastic baseline of the NEq paper.
    """

    observes = False

    def __init__(self, p: float, seed: int = 0) -> None:
        if not 0 <= p <= 1:
            raise ConfigError(f"p: the frozen share must be in [0, 1], not {p}")
        self.p = p
        self._generator = torch.Generator().manual_seed(seed)

    def select(self, neurons: Mapping[str, int], similarities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw the next masks; see :class:`Selection`."""
        return {name: self._draw(count) for name, count in neurons.items()}

    def _draw(self, count: int) -> Tensor:
        frozen = torch.zeros(count, dtype=torch.bool)
        frozen[torch.randperm(count, generator=self._generator)[: int(self.p * count)]] = True
        return frozen

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._generator.set_state(state["generator"].cpu())


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}

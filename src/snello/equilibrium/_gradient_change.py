"""A selection of layers whose gradients have stopped changing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snello.errors import ConfigError, check_state
from snello.neurons import neuron_layers
from snello.optimizers import StepFollower, follow_steps, parameters_of
from snello.wrappers import unwrapped

from ._selection import WatchedLayer, copied, whole_layers
from ._uses import in_projections


class GradientChange(StepFollower):
    r"""AutoFreeze's rule: freeze the layers whose gradients have changed least.

    With $\Delta_l^t$ the sum of the gradients of layer $l$ over all optimizer steps between two
    decisions,

    $$\eta_l^t = \frac{\bigl|\lVert\Delta_l^{t-1}\rVert_1 - \lVert\Delta_l^t\rVert_1\bigr|}
    {\lVert\Delta_l^{t-1}\rVert_1}.$$

    Of the layers that learn, those with $\eta$ below a quantile rest, and go on resting. Whole
    layers rest or learn; AutoFreeze lets them rest from the input on, as
    `Settled(GradientChange(model), share=1)` does. The sums take as much memory as the gradients.

    Args:
        model: the model in training.
        quantile: in [0, 1]; 0 freezes nothing.

    Raises:
        ConfigError: for a quantile outside [0, 1].

    Source: Liu, Agarwal, Venkataraman, "AutoFreeze: automatically freezing model blocks to
    accelerate fine-tuning", 2021, https://arxiv.org/abs/2102.01386.
    """

    observes = False

    def __init__(self, model: nn.Module, quantile: float = 0.5) -> None:
        if not 0 <= quantile <= 1:
            raise ConfigError(f"quantile: must be in [0, 1], not {quantile}")
        self.quantile = quantile
        inner = unwrapped(model, "GradientChange")
        layers = {**neuron_layers(inner), **in_projections(inner)}
        self._parameters = {
            name: [*layer.parameters(recurse=False)] for name, layer in layers.items()
        }
        self._sums: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}
        self._eta: dict[str, float] = {}
        self._resting: set[str] = set()
        follow_steps(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Follow the steps in a copy as well."""
        vars(self).update(state)
        follow_steps(self)

    @property
    def eta(self) -> dict[str, float]:
        """Layer name -> change of its gradients at the last decision, of the layers that learn."""
        return dict(self._eta)

    def after(self, optimizer: Optimizer) -> None:
        """Add the gradients of an optimizer step."""
        own = {id(p) for p in parameters_of(optimizer)}
        # Set for the step of a fused optimizer, which is called even if the scaler has overflowed.
        overflown = getattr(optimizer, "found_inf", None)
        for name, parameters in self._parameters.items():
            found = [p.grad if id(p) in own else None for p in parameters]
            if all(grad is None for grad in found):
                continue
            # A weight and its bias may be in two optimizers, or learn at other times.
            summed = torch.cat(list(map(_flat, parameters, found)))
            if overflown is not None:
                summed.masked_fill_(overflown.to(summed.device) > 0, 0)
            before = self._sums.get(name)
            self._sums[name] = summed if before is None else before.to(summed).add_(summed)

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Freeze the layers below the quantile; see `Selection`."""
        norms = {name: float(self._sums[name].norm(1)) for name in layers if name in self._sums}
        self._eta = {
            name: abs(self._norms[name] - norm) / self._norms[name]
            for name, norm in norms.items()
            if self._norms.get(name)
        }
        bound = _quantile(self._eta, self.quantile)
        calm = {name for name, eta in self._eta.items() if eta < bound}
        # A layer without gradients rests already; one that has been thawed is judged again.
        self._resting = (self._resting - norms.keys()) | calm
        self._norms, self._sums = norms, {}
        return whole_layers(layers, self._resting)

    def state_dict(self) -> dict[str, Any]:
        """Sums since the last decision, their last norms, changes, and the layers at rest."""
        return {
            "sums": copied(self._sums),
            "norms": dict(self._norms),
            "eta": self.eta,
            "resting": sorted(self._resting),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        numbers = dict[str, float]
        kinds = {"sums": dict[str, Tensor], "norms": numbers, "eta": numbers, "resting": list[str]}
        check_state(state, kinds, type(self).__name__)
        sums, norms, eta = copied(state["sums"]), dict(state["norms"]), dict(state["eta"])
        self._sums, self._norms, self._eta = sums, norms, eta
        self._resting = set(state["resting"])


def _flat(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    """A gradient in single precision, one dimension; zeros if there is none."""
    if gradient is None:
        return parameter.new_zeros(parameter.numel(), dtype=torch.float)
    return gradient.detach().flatten().float()


def _quantile(values: Mapping[str, float], share: float) -> float:
    if not values or not share:
        return 0.0
    return float(torch.tensor([*values.values()], dtype=torch.float64).quantile(share))

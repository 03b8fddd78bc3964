"""A selection that freezes whole layers from the input on, which saves more time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, check_count, check_state
from snello.optimizers import Optimizers, optimizers_of

from ._selection import Selection, WatchedLayer, check_selection, share_of, show


class Settled:
    """Freeze whole layers from the input on, once another rule freezes most of their neurons.

    A single frozen neuron saves its weight gradient. If a whole layer and all layers before it are
    frozen, their part of the backward pass and their stored activations are saved, and their
    outputs can be kept from epoch to epoch ([`FeatureCache`][snello.equilibrium.FeatureCache]).
    Layers therefore settle, that is, are frozen whole, in the order of the forward pass:

    1. a layer settles if the layers before it have settled and the rule has frozen at least
       `share` of its neurons in `patience` consecutive steps;
    2. it is unfrozen, with all layers after it, if the rule freezes less than `share - slack`;
    3. all layers are unfrozen if the learning rate falls below half of its highest value since the
       last time;
    4. in layers that have not settled, the rule freezes single neurons, or none (`scattered`).

    Args:
        rule: rule for single neurons, such as [`Velocity`][snello.equilibrium.Velocity], or for
            layers: [`GradientChange`][snello.equilibrium.GradientChange],
            [`Plasticity`][snello.equilibrium.Plasticity] or
            [`StableCKA`][snello.equilibrium.StableCKA].
        share: share of a layer's neurons, in (0, 1].
        slack: hysteresis, in [0, share].
        patience: number of consecutive steps, at least 1.
        scattered: whether the rule freezes neurons of layers that have not settled. If False, all
            of them are updated, which avoids the cost of masks in the backward pass.
        optimizer: optimizer whose learning rate is watched; None to ignore learning rates.

    Raises:
        ConfigError: for a value outside these bounds, or a rule that is none.
    """

    def __init__(
        self,
        rule: Selection,
        share: float = 0.9,
        *,
        slack: float = 0.2,
        patience: int = 1,
        scattered: bool = True,
        optimizer: Optimizers = None,
    ) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"share: must be in (0, 1], not {share}")
        if not 0 <= slack <= share:
            raise ConfigError(f"slack: must be in [0, share={share}], not {slack}")
        check_count("patience", patience)
        check_selection(rule, "rule")
        self.rule, self.share, self.slack = rule, share, slack
        self.patience, self.scattered = patience, scattered
        self._optimizers = optimizers_of(optimizer, "Settled")
        self._rested: dict[str, int] = {}
        self._settled: list[str] = []
        self._rate: float | None = None

    @property
    def observes(self) -> bool:
        """True if the rule uses similarities."""
        return self.rule.observes

    @property
    def settled(self) -> tuple[str, ...]:
        """The layers that are frozen whole, from the input on."""
        return tuple(self._settled)

    def observe(self, outputs: Mapping[str, Tensor]) -> None:
        """Pass the probe's outputs to the rule."""
        show(self.rule, outputs)

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Apply the rule, settle and unfreeze layers; see `Selection`."""
        masks = self.rule.select(layers, similarities)
        resting = {name: share_of(masks.get(name)) for name in layers}
        for name, share in resting.items():
            self._rested[name] = self._rested.get(name, 0) + 1 if share >= self.share else 0
        if self._fell():
            self._settled, self._rested = [], {}
        self._settled = self._prefix(resting)
        whole = set(self._settled)
        chosen = {}
        for name, layer in layers.items():
            if name in whole:
                chosen[name] = torch.ones(layer.neurons, dtype=torch.bool)
            elif self.scattered and name in masks:
                chosen[name] = masks[name]
        return chosen

    def _prefix(self, resting: Mapping[str, float]) -> list[str]:
        """The first layers in forward order that stay settled or settle now."""
        before, found = set(self._settled), []
        for name, share in resting.items():
            stays = name in before and share >= self.share - self.slack
            if not stays and self._rested.get(name, 0) < self.patience:
                break
            found.append(name)
        return found

    def _fell(self) -> bool:
        """True if the learning rate is below half of its highest since this was last true."""
        rates = [float(group["lr"]) for o in self._optimizers for group in o.param_groups]
        if not rates:
            return False
        now = max(rates)
        fell = self._rate is not None and now < 0.5 * self._rate
        self._rate = now if fell or self._rate is None else max(now, self._rate)
        return fell

    def state_dict(self) -> dict[str, Any]:
        """State of the rule, settled layers, counts of steps, and the highest learning rate."""
        return {
            "rule": self.rule.state_dict(),
            "rested": dict(self._rested),
            "settled": list(self._settled),
            "rate": self._rate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        kinds = {
            "rule": dict,
            "rested": dict[str, int],
            "settled": list[str],
            "rate": float | None,
        }
        check_state(state, kinds, type(self).__name__)
        self.rule.load_state_dict(state["rule"])
        self._rested, self._settled = dict(state["rested"]), list(state["settled"])
        self._rate = state["rate"]

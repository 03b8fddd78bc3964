"""Learning rate and end of a training from the velocities of its neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, check_option, check_state

from ._neq import SelectiveUpdate


@dataclass(frozen=True)
class VelocityStep:
    """One step of [`NeVe`][snello.equilibrium.NeVe].

    Attributes:
        speed: mean of |v| over all neurons.
        change: mean squared difference to the velocities of the last step; infinite in the first.
        lowered: whether the learning rates were lowered.
        stop: whether the speed is below the bound, so that the training may end.
    """

    speed: float
    change: float
    lowered: bool
    stop: bool


class NeVe:
    """Lower the learning rate when velocities stop changing; end the training when they are small.

    It uses the similarities that a [`SelectiveUpdate`][snello.equilibrium.SelectiveUpdate] has
    computed on its probe, so that it costs nothing more, and needs no validation set:

        neq = NEq(model, optimizer, probe)
        neve = NeVe(neq)
        for epoch in range(200):
            ...
            neq.step()
            if neve.step().stop:
                break

    With $\\varphi^t$ the similarity of a neuron's outputs to those of the last step,
    $v^t = 1 - (\\varphi^t + \\mu\\,v^{t-1})$. The learning rates are multiplied by `factor` once the
    mean squared difference of $v^t$ and $v^{t-1}$ has not fallen below its lowest value since the
    last time in `patience + 1` consecutive steps.

    Args:
        update: the selective update; its selection must observe similarities, as
            [`Velocity`][snello.equilibrium.Velocity] does.
        factor: factor of the learning rates, in (0, 1).
        patience: number of steps without a new lowest value that are tolerated.
        bound: mean |v| below which `stop` is true; 0 for never.
        mu: weight of the last velocity, in [0, 1).
        lowest: learning rates are not lowered below this value.

    Raises:
        ConfigError: for a value out of range, a selection that observes nothing, or an update
            without optimizer.

    Source: Dalmasso, Bragagnolo, Tartaglione, Fiandrotti, Grangetto, "Neural velocity for
    hyperparameter tuning", IJCNN 2025, https://arxiv.org/abs/2507.05309, and its code.
    """

    def __init__(
        self,
        update: SelectiveUpdate,
        *,
        factor: float = 0.1,
        patience: int = 10,
        bound: float = 1e-3,
        mu: float = 0.5,
        lowest: float = 0.0,
    ) -> None:
        check_option(0 < factor < 1, f"factor: must be in (0, 1), not {factor}")
        check_option(patience >= 0, f"patience: must be at least 0 steps, not {patience}")
        check_option(bound >= 0, f"bound: must be at least 0, not {bound}")
        check_option(0 <= mu < 1, f"mu: must be in [0, 1), not {mu}")
        check_option(lowest >= 0, f"lowest: must be at least 0, not {lowest}")
        check_option(
            isinstance(update, SelectiveUpdate),
            f"update: must be a SelectiveUpdate, such as NEq, not a {type(update).__name__}",
        )
        name = type(update.selection).__name__
        check_option(
            update.selection.observes,
            f"update: its selection {name} runs no probe, so that there are no similarities; use Velocity",
        )
        check_option(
            not update.only_if_faster,
            "update: with only_if_faster=True the probe may stop; leave it out to follow velocities",
        )
        check_option(
            bool(update.optimizers), "update: it has no optimizer whose learning rate could be set"
        )
        self._update = update
        self.factor, self.patience, self.bound, self.mu = factor, patience, bound, mu
        self.lowest = lowest
        self._velocity: Tensor | None = None
        self._seen: Mapping[str, Tensor] | None = None
        self._best, self._waited = math.inf, 0

    def step(self) -> VelocityStep:
        """Evaluate the last step of the selective update; call it after each of them.

        Raises:
            ConfigError: if the selective update has made no step since the last call.
        """
        found = self._update.similarities
        if not found or found is self._seen:
            raise ConfigError("NeVe: call the selective update's step() before this one")
        self._seen = found
        # In float64, as differences of similarities close to 1.
        phi = torch.cat([values.cpu().double() for values in found.values()]).clamp(-1, 1)
        before, self._velocity = self._velocity, 1 - phi
        change = math.inf
        if before is not None:
            check_option(
                before.shape == phi.shape,
                f"state_dict: belongs to a network of {len(before)} watched neurons, not {len(phi)}",
            )
            self._velocity = self._velocity - self.mu * before
            change = float((self._velocity - before).square().mean())
        speed = float(self._velocity.abs().mean())
        return VelocityStep(speed, change, self._lower(change), speed < self.bound)

    def _lower(self, change: float) -> bool:
        """Count the steps without a new lowest change; lower the rates after too many."""
        if math.isinf(change):
            return False
        self._waited = 0 if change < self._best else self._waited + 1
        self._best = min(self._best, change)
        if self._waited <= self.patience:
            return False
        self._best, self._waited = math.inf, 0
        for optimizer in self._update.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = max(group["lr"] * self.factor, min(self.lowest, group["lr"]))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Velocities, lowest change and steps waited; learning rates are the optimizer's."""
        velocity = torch.empty(0) if self._velocity is None else self._velocity.clone()
        return {"velocity": velocity, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of NeVe.
        """
        check_state(state, {"velocity": Tensor, "best": float, "waited": int}, "NeVe")
        velocity = state["velocity"].cpu()
        self._velocity = velocity.clone() if len(velocity) else None
        self._best, self._waited = float(state["best"]), state["waited"]

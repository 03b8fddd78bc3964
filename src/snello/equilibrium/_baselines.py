"""Selections to compare NEq with: random neurons, the first layers, a parameter budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, check_count, check_option, check_state

from ._records import EquilibriumStep
from ._selection import Formula, Velocity, WatchedLayer, part_of, whole_layers


class Stochastic:
    """The random baseline: a share of the neurons of every layer, drawn again at each step.

    Args:
        p: share of each layer to freeze, in [0, 1]; the number of neurons is rounded down.
        seed: seed of its own generator; the global generators are not touched.

    Source: the Stochastic baseline of the NEq paper.
    """

    observes = False

    def __init__(self, p: float, seed: int = 0) -> None:
        self.p = _share("p", p)
        self._generator = torch.Generator().manual_seed(seed)

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Draw the next masks; see [`Selection`][snello.equilibrium.Selection]."""
        return {
            name: _drawn(layer.neurons, self.p, self._generator) for name, layer in layers.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        self._generator = _generator_of(state, "Stochastic", {})


class MatchedStochastic:
    """The paper's Stochastic*: random neurons, as many as NEq froze.

    The comparison shows the value of NEq's *choice* of neurons at equal cost.

    Args:
        run: the run to match. For a finished run: its frozen shares, or the
            [`EquilibriumStep`][snello.equilibrium.EquilibriumStep] that each of its steps returned
            (also in warm-up). Or a [`Velocity`][snello.equilibrium.Velocity] rule that is evaluated
            during this run: every step freezes the mean share that the rule would have frozen so
            far.
        per_step: match a finished run step by step, not by its mean; beyond its end, its last share
            is used.
        seed: seed of its own generator; the global generators are not touched.

    Raises:
        ConfigError: for an empty run, a share outside [0, 1], or `per_step` without a finished
            run.

    Source: the Stochastic* baseline of the NEq paper, which draws at NEq's mean frozen share.
    """

    def __init__(
        self,
        run: Sequence[float | EquilibriumStep] | Velocity,
        *,
        per_step: bool = False,
        seed: int = 0,
    ) -> None:
        self._rule: Velocity | None = None
        self._shares: tuple[float, ...] = ()
        if isinstance(run, Velocity):
            check_option(
                not per_step,
                "per_step: needs a finished run; a velocity rule gives its running mean",
            )
            self._rule = run
        else:
            self._shares = tuple(map(_frozen_share, run))
            check_option(
                bool(self._shares), "run: it is empty; give the frozen share of at least one step"
            )
        self.per_step = per_step
        self._generator = torch.Generator().manual_seed(seed)
        self._steps, self._seen = 0, 0.0

    @property
    def observes(self) -> bool:
        """True if a velocity rule is matched, so that the probe must run at every step."""
        return self._rule is not None

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Draw the next masks; see [`Selection`][snello.equilibrium.Selection]."""
        if self._rule is not None:
            masks = self._rule.select(layers, similarities)
            neurons = sum(layer.neurons for layer in layers.values())
            self._seen += sum(int(mask.sum()) for mask in masks.values()) / neurons
        self._steps += 1
        share = self._next_share()
        return {
            name: _drawn(layer.neurons, share, self._generator) for name, layer in layers.items()
        }

    def _next_share(self) -> float:
        if self._rule is not None:
            return self._seen / self._steps
        if self.per_step:
            return self._shares[min(self._steps, len(self._shares)) - 1]
        return statistics.fmean(self._shares)

    def state_dict(self) -> dict[str, Any]:
        """Generator, counters, and the state of the rule that is matched."""
        return {
            "generator": self._generator.get_state(),
            "steps": self._steps,
            "seen": self._seen,
            "rule": {} if self._rule is None else self._rule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        kinds = {"steps": int, "seen": float, "rule": dict}
        generator = _generator_of(state, "MatchedStochastic", kinds)
        if bool(state["rule"]) != (self._rule is not None):
            raise ConfigError(
                "state_dict: one of the two matches a velocity rule, the other a finished run"
            )
        if self._rule is not None:
            self._rule.load_state_dict(state["rule"])
        self._generator, self._steps = generator, state["steps"]
        self._seen = float(state["seen"])


@dataclass(frozen=True)
class FreezeOut:
    """FreezeOut's timetable: the share of the layers that has stopped learning at a step.

    Layer after layer stops between `t0` and the end of the training. FreezeOut also anneals the
    learning rate of each layer down to zero until it stops; that is left to the scheduler.

    Attributes:
        steps: steps of the whole training.
        t0: time at which the first layer stops, as a share of the training, in (0, 1].
        cubed: stop each layer at the cube of its linear time `t0 + (1 - t0) i / layers`, so that
            the first layers stop earlier: from `t0 ** 3` on.

    Raises:
        ConfigError: for fewer than one step or a time outside (0, 1].

    Source: Brock, Lim, Ritchie, Weston, "FreezeOut: Accelerate training by progressively freezing
    layers", 2017, https://arxiv.org/abs/1706.04983, section 2.
    """

    steps: int
    t0: float = 0.8
    cubed: bool = True

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if not 0 < self.t0 <= 1:
            raise ConfigError(f"t0: must be in (0, 1], not {self.t0}")

    def __call__(self, step: int) -> float:
        """Share of the layers that no longer learn after `step` steps, in [0, 1]."""
        time = min(step / self.steps, 1.0)
        time = time ** (1 / 3) if self.cubed else time
        if time >= 1:
            return 1.0
        return max(time - self.t0, 0.0) / (1 - self.t0) if self.t0 < 1 else 0.0


class Prefix:
    """A baseline that freezes whole layers, from the input on.

    The backward pass ends at the first layer that still learns, so this saves more time per frozen
    parameter than freezing scattered neurons.

    Args:
        share: share of the watched layers to freeze, in [0, 1]; or a function from the number of
            the step, from 1, to that share, such as [`FreezeOut`][snello.equilibrium.FreezeOut]. A
            convolution and its BatchNorm count as two layers.
    """

    observes = False

    def __init__(self, share: float | Callable[[int], float]) -> None:
        self._share = share if callable(share) else _constant(_share("share", share))
        self._steps = 0

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Freeze the first layers in forward order; see
        [`Selection`][snello.equilibrium.Selection].

        Raises:
            ConfigError: if the schedule returns a share outside [0, 1].
        """
        share = _share(
            f"share: the schedule at step {self._steps + 1}", self._share(self._steps + 1)
        )
        self._steps += 1
        return whole_layers(layers, [*layers][: part_of(share, len(layers))])

    def state_dict(self) -> dict[str, Any]:
        """The number of steps so far."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        check_state(state, {"steps": int}, type(self).__name__)
        self._steps = state["steps"]


class ParameterBudget:
    """Update a fixed number of parameters: those of the neurons with most velocity per parameter.

    The neurons of all layers are ranked by velocity per parameter. The highest-ranked neurons are
    updated, as many as the budget allows.

    Args:
        budget: parameters that may learn (a whole number), or their share of all parameters of
            watched layers (a float in [0, 1]). Layers that are left alone always learn and do not
            count.
        mu: weight of the last velocity; see [`Velocity`][snello.equilibrium.Velocity].
        formula: definition of the velocity; see [`Velocity`][snello.equilibrium.Velocity].

    Raises:
        ConfigError: for a negative budget, or a share above 1.

    Source: Quélennec, Tartaglione, Mozharovskyi, Nguyen, "Towards on-device learning on the edge:
    ways to select neurons to update under a budget constraint", WACV workshops 2024,
    https://arxiv.org/abs/2312.05282.
    """

    observes = True

    def __init__(self, budget: int | float, mu: float = 0.5, formula: Formula = "paper") -> None:
        if isinstance(budget, bool) or not (
            budget >= 0 and (isinstance(budget, int) or budget <= 1)
        ):
            raise ConfigError(
                f"budget: must be a number of parameters (int) or a share in [0, 1] (float), not {budget!r}"
            )
        self.budget = budget
        # With eps = 0 the rule freezes nothing itself; only its velocities are used.
        self._rule = Velocity(0, mu, formula)

    @property
    def velocity(self) -> dict[str, Tensor]:
        """Layer name -> the last velocities, shape `(neurons,)`; empty before the first step."""
        return self._rule.velocity

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Advance the velocities and freeze all but the fastest neurons; see `Selection`."""
        self._rule.select(layers, similarities)
        velocity = self._rule.velocity
        speed = torch.cat([velocity[name].cpu().abs().double() for name in layers])
        sizes = [layer.neurons for layer in layers.values()]
        each = torch.tensor([layer.parameters for layer in layers.values()])
        cost = each.repeat_interleave(torch.tensor(sizes))
        # Stable, so that neurons of equal speed learn in forward order on every machine.
        order = torch.argsort(speed / cost.clamp(min=1), descending=True, stable=True)
        fits = cost[order].cumsum(0) <= self._parameters(int(cost.sum()))
        frozen = torch.ones(len(speed), dtype=torch.bool)
        frozen[order[fits]] = False
        parts = frozen.split(sizes)  # type: ignore[no-untyped-call]
        return dict(zip(layers, parts, strict=True))

    def _parameters(self, total: int) -> int:
        return self.budget if isinstance(self.budget, int) else part_of(self.budget, total)

    def state_dict(self) -> dict[str, Any]:
        """The state of the velocities."""
        return self._rule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        self._rule.load_state_dict(state)


def _generator_of(
    state: Mapping[str, Any], owner: str, kinds: Mapping[str, Any]
) -> torch.Generator:
    """A generator in the state that was saved, after a check of the whole state."""
    check_state(state, {"generator": Tensor, **kinds}, owner)
    generator = torch.Generator()
    try:
        generator.set_state(state["generator"].cpu())
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"not a state of {owner}: its 'generator' is none: {error}") from error
    return generator


def _drawn(count: int, share: float, generator: torch.Generator) -> Tensor:
    """A mask with a share of `count` neurons, at random."""
    frozen = torch.zeros(count, dtype=torch.bool)
    frozen[torch.randperm(count, generator=generator)[: part_of(share, count)]] = True
    return frozen


def _frozen_share(step: float | EquilibriumStep) -> float:
    return _share("run", 1 - step.total if isinstance(step, EquilibriumStep) else step)


def _share(what: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{what}: the frozen share must be in [0, 1], not {value}")
    return float(value)


def _constant(share: float) -> Callable[[int], float]:
    return lambda _step: share

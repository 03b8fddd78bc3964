"""A selection that keeps a training step within a measured time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, check_count, check_option, check_state
from snello.graph import Example

from ._agree import from_first_rank
from ._neq import SelectiveUpdate
from ._selection import Selection, WatchedLayer, check_selection, share_of, show
from ._timing import time_step, trial


@dataclass(frozen=True)
class StepTimes:
    """Measured times of a training step with more and more layers at rest.

    Attributes:
        depths: numbers of watched layers that rest, from the input on, increasing from 0.
        milliseconds: median time of a step at each depth, made non-increasing.
    """

    depths: tuple[int, ...]
    milliseconds: tuple[float, ...]

    def depth(self, budget: float) -> int:
        """The smallest depth at which a step takes at most `budget` milliseconds.

        Raises:
            ConfigError: if there is none.
        """
        for depth, time in zip(self.depths, self.milliseconds, strict=True):
            if time <= budget:
                return depth
        raise ConfigError(
            f"milliseconds: no step takes at most {budget:g}; with {self.depths[-1]} layers at rest it takes "
            f"{self.milliseconds[-1]:.3g}: raise the budget or make the batch smaller"
        )


class TimeBudget:
    """Let layers rest, from the input on, until a training step takes at most x milliseconds.

    Time is saved where the backward pass ends early, so layers rest in the order of the forward
    pass, which is also about the order in which they come to rest. The times are measured, not
    estimated from FLOPs:

        budget = TimeBudget(milliseconds=20)
        update = SelectiveUpdate(model, optimizer, probe, budget)
        budget.measure(update, inputs, targets, loss_fn)     # once, on one batch

    With a `rule` the budget is spent on the neurons that move most: as long as there are layers in
    front with a larger share at rest than `share`, they rest too, also beyond what the budget
    asks for.

    Args:
        milliseconds: largest time of forward pass, backward pass and optimizer step.
        rule: rule for single neurons, such as [`Velocity`][snello.equilibrium.Velocity]; None:
            only the budget counts.
        share: share of a layer's neurons that the rule must freeze for the layer to rest in
            addition.

    Raises:
        ConfigError: for a value out of range, or a rule that is none.

    Source: the budgets of Quélennec et al., 2024, https://arxiv.org/abs/2312.05282, in measured
    time instead of parameters.
    """

    def __init__(
        self, milliseconds: float, rule: Selection | None = None, *, share: float = 0.9
    ) -> None:
        check_option(milliseconds > 0, f"milliseconds: must be positive, not {milliseconds}")
        check_option(0 < share <= 1, f"share: must be in (0, 1], not {share}")
        if rule is not None:
            check_selection(rule, "rule")
        self.milliseconds, self.rule, self.share = milliseconds, rule, share
        self.times: StepTimes | None = None

    @property
    def observes(self) -> bool:
        """True if the rule uses similarities."""
        return self.rule is not None and self.rule.observes

    def measure(
        self,
        update: SelectiveUpdate,
        inputs: Example,
        targets: Any,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        depths: int = 8,
        repeats: int = 5,
    ) -> StepTimes:
        """Measure a training step on one batch at some depths; nothing of the training changes.

        In distributed training every process calls it; the times of the first one count.

        Args:
            update: the selective update that has this selection.
            inputs: one batch: a tensor, or the model's arguments as a tuple or by name.
            targets: its targets, the second argument of the loss.
            loss_fn: `loss_fn(output, targets)` -> scalar.
            depths: number of depths besides 0, evenly spread over the watched layers.
            repeats: steps measured at each depth.

        Raises:
            ConfigError: for a number below one, or an update without an optimizer.
        """
        check_count("depths", depths)
        whole = {name: torch.ones_like(mask) for name, mask in update.frozen.items()}
        points = sorted({round(len(whole) * i / depths) for i in range(depths + 1)})
        found: list[float] = []
        for depth in points:
            with trial(update, dict(islice(whole.items(), depth))):
                timing = time_step(update, inputs, targets, loss_fn, repeats)
            step = timing.step.sparse_ms if depth else timing.step.dense_ms
            found.append(min([step, *found[-1:]]))  # noise must not make rest cost time
        # Those of the first process, so that all of them decide alike, also that none is fast enough.
        times = torch.tensor(found, dtype=torch.float64)
        agreed = from_first_rank({"times": times}, update.device)["times"].tolist()
        self.times = StepTimes(tuple(points), tuple(agreed))
        return self.times

    def observe(self, outputs: Mapping[str, Tensor]) -> None:
        """Pass the probe's outputs to the rule."""
        show(self.rule, outputs)

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Freeze the layers that the budget asks for; see
        [`Selection`][snello.equilibrium.Selection].

        Raises:
            ConfigError: before `measure`, or if no depth keeps the budget.
        """
        if self.times is None:
            raise ConfigError(
                "TimeBudget: nothing has been measured yet; call budget.measure(update, inputs, targets, loss_fn)"
            )
        depth = self.times.depth(self.milliseconds)
        masks = self.rule.select(layers, similarities) if self.rule is not None else {}
        chosen = {}
        for position, (name, layer) in enumerate(layers.items()):
            if position >= depth and share_of(masks.get(name)) < self.share:
                break
            chosen[name] = torch.ones(layer.neurons, dtype=torch.bool)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """State of the rule, and the measured times."""
        times = self.times
        return {
            "rule": {} if self.rule is None else self.rule.state_dict(),
            "depths": [] if times is None else list(times.depths),
            "milliseconds": [] if times is None else list(times.milliseconds),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with its measured times: a resumed run decides alike.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        kinds = {"rule": dict, "depths": list[int], "milliseconds": list[float]}
        check_state(state, kinds, type(self).__name__)
        if self.rule is not None:
            self.rule.load_state_dict(state["rule"])
        if state["depths"]:
            self.times = StepTimes(tuple(state["depths"]), tuple(state["milliseconds"]))

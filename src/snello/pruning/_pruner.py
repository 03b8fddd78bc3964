"""The pruner: schedule, amount, masks and their pinning, in one stateful object."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from snello.errors import ConfigError, DivergenceError
from snello.graph import evaluation
from snello.neurons import (
    LayerFilter,
    Masks,
    apply_masks,
    count_parameters,
    head,
    select_layers,
    weighted_layers,
)
from snello.optimizers import Optimizers, check_trained, optimizers_of
from snello.processes import mean_over_processes, meet
from snello.wrappers import computed_memo, unwrapped

from ._amount import Amount, LossBound, Ratio
from ._importance import Granularity, Importance, importance_of
from ._pin import Pin, pins_of, remember, remembered
from ._plan import LayerShare, PrunerStep, PruningPlan
from ._plateau import Plateau
from ._schedule import Cubic, Schedule
from ._threshold import ThresholdSearch
from ._trial import ScoredTrial
from ._units import Units
from ._warnings import warn_of_averages, warn_of_unmasked_zeros

Scope = Literal["global", "layer"]


class Pruner:
    """Prune a network: what is worth least goes, as much as is asked, when the schedule says so.

    Without options it is the template of the sensitivity papers: on a plateau of the loss, restore
    the best weights and prune by magnitude as much as the loss allows.

    With several processes (DistributedDataParallel) call it on all of them: losses and costs are
    averaged, so that all prune alike.

    What was pruned stays exactly zero through the steps of every optimizer, also of one that is
    made later, through ``load_state_dict`` of other weights (with a warning) and in copies of the
    model, until :meth:`remove`. The next pruner of the same model begins with these masks. Copies
    of the weights that were made before, such as running averages, have to be followed; see
    :meth:`follow`.

    Args:
        model: the model; its parameters are masked in place and never replaced. ``DataParallel``,
            ``DistributedDataParallel`` and ``torch.compile`` are looked through.
        optimizer: the optimizer that trains it; a list if there are several; None if there is none
            yet. They are checked: every prunable parameter that is trained must be in one of them.
            Wrappers with an attribute ``optimizer`` (Accelerate, Lightning) are looked through.
        evaluate: returns the validation loss of a model; called in evaluation mode without
            gradients. Only :class:`LossBound` needs it.
        granularity: "weight" prunes single weights; "neuron" prunes whole neurons, with their bias
            and the scale and shift of the BatchNorm that reads them alone, so that a pruned neuron
            is exactly zero.
        scope: "global" ranks the units of all layers together; "layer" takes the same share of
        every layer. importance: what a unit is worth: "l1" (mean magnitude, for neurons), "l2",
            "han", "bn-scale", "random", or a function such as :func:`taylor`,
            :func:`snello.sensitivity.serene_scores` return.
        amount: how much one step takes: :class:`LossBound`, :class:`Ratio` or :class:`Budget`.
        schedule: when: :class:`Plateau`, :class:`OneShot` or :class:`Cubic`.
        exclude: layers that are never pruned: their names or types, or a function of name and
            module. The default is the head.
        twt: short for ``amount=LossBound(twt)``; 0.05 by default.
        pwe: short for ``schedule=Plateau(pwe, tolerance)``; 5 by default.
        tolerance: what counts as an improvement on the plateau, as a share of the best loss; 0.01
        by default. on_plan: called with the plan before every pruning step; ``print`` shows it.

    Attributes:
        masks: what is kept of each parameter with pruned entries.
        left_alone: layer name -> why it is never pruned: its weight is computed (weight norm, other
            parametrisations, masks of ``torch.nn.utils.prune``).

    Raises:
        ConfigError: for numbers outside their range, unknown names, and options that exclude each
            other; for an optimizer of another model, and optimizers that leave out a prunable
            parameter; for a model whose parameters are sharded, or without a layer to prune.
        ModelError: if neurons are to be pruned in a model that torch.fx cannot trace.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        evaluate: Callable[[nn.Module], float] | None = None,
        *,
        granularity: Granularity = "weight",
        scope: Scope = "global",
        importance: str | Importance = "l1",
        amount: Amount | None = None,
        schedule: Schedule | None = None,
        exclude: LayerFilter | None = None,
        twt: float | None = None,
        pwe: int | None = None,
        tolerance: float | None = None,
        on_plan: Callable[[PruningPlan], object] | None = None,
    ) -> None:
        if granularity not in ("weight", "neuron"):
            raise ConfigError(f"granularity is 'weight' or 'neuron', not {granularity!r}")
        if scope not in ("global", "layer"):
            raise ConfigError(f"scope is 'global' or 'layer', not {scope!r}")
        _either("amount", amount, twt=twt)
        _either("schedule", schedule, pwe=pwe, tolerance=tolerance)
        self.model = model = unwrapped(model, "Pruner")
        self.granularity, self.scope = granularity, scope
        self.importance, self.on_plan = importance_of(importance), on_plan
        self.amount: Amount = amount or LossBound(0.05 if twt is None else twt)
        self.schedule: Schedule = schedule or Plateau(
            5 if pwe is None else pwe, 0.01 if tolerance is None else tolerance
        )
        self._evaluate = evaluate
        self._check_options()
        self._units = Units.of(model, _prunable(model, exclude), granularity)
        self.left_alone = self._units.left_alone
        if not self._units.layers:
            raise ConfigError(
                f"{type(model).__name__} has no layer to prune; left alone: {self.left_alone}"
            )
        self._optimizers = self._checked(optimizer)
        self.masks: Masks = {}
        self.finished = False
        self._best: dict[str, Tensor] | None = None
        self._followers: list[nn.Module] = []
        self._pin: Pin | None = None
        for inherited in [held for held in pins_of(model) if held.inherited]:
            inherited.remove()  # its masks are remembered
        if known := remembered(model):
            self._set_masks(known)
        warn_of_unmasked_zeros(model, self._units, self.masks)
        self._pin_now()

    def _check_options(self) -> None:
        if self.amount.needs_loss and self._evaluate is None:
            raise ConfigError(
                "a bound on the loss needs evaluate, a function from the model to its validation loss"
            )
        if isinstance(self.schedule, Cubic) and not isinstance(self.amount, Ratio):
            raise ConfigError(
                f"a cubic schedule raises a share: use amount=Ratio(...), not {self.amount}"
            )

    # Keeping pruned weights at zero

    def attach(self, optimizer: Optimizers) -> None:
        """Train on with other optimizers than those given first; or pin again what :meth:`remove`
        let go.

        Raises:
            ConfigError: for an optimizer of another model, and optimizers that leave out a prunable
                parameter.
        """
        self._optimizers = self._checked(optimizer)
        apply_masks(self.model, self.masks)
        self._pin_now()

    def remove(self) -> None:
        """Let go: pruned weights may move again."""
        if self._pin is not None:
            self._pin.remove()
        self._pin = None

    def _checked(self, given: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
        optimizers = optimizers_of(given, "Pruner")
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        check_trained(
            {name: parameters[name] for name in self._units.parameters}, optimizers, "Pruner"
        )
        return optimizers

    def _pin_now(self) -> None:
        if self._pin is None:
            self._pin = Pin(self.model, lambda: self.masks)

    def follow(self, model: nn.Module) -> None:
        """Mask another model of the same parameters too, now and after every pruning step.

        For a running average of the weights, ``torch.optim.swa_utils.AveragedModel``: it would
        otherwise keep a memory of what the pruned weights were. From then on it averages zeros.

        Raises:
            ConfigError: if the masks do not fit the model.
        """
        inner = model.module if isinstance(model, AveragedModel) else getattr(model, "module", None)
        inner = unwrapped(inner if isinstance(inner, nn.Module) else model, "Pruner.follow")
        apply_masks(inner, self.masks)
        if all(inner is not known for known in self._followers):
            self._followers.append(inner)

    def adopt(self, masks: Masks) -> None:
        """Prune what these masks prune, in addition; see :func:`import_masks`.

        Raises:
            ConfigError: for a mask that does not fit the model.
        """
        apply_masks(self.model, masks)
        self._set_masks(masks)

    def _set_masks(self, masks: Masks) -> None:
        grown = {
            name: mask & self.masks[name] if name in self.masks else mask
            for name, mask in masks.items()
        }
        self.masks = {**self.masks, **grown}
        self._apply()
        warn_of_averages(self.model, self._followers)

    def _apply(self) -> None:
        remember(self.model, self.masks)
        for model in (self.model, *self._followers):
            apply_masks(model, self.masks)

    # Pruning

    def step(self, loss: float | None = None) -> PrunerStep:
        """Once per epoch: prune if the schedule says so; on a plateau, restore the best weights
        first.

        Args:
            loss: the validation loss of the model as it is, if it has been measured already.

        Raises:
            DivergenceError: if the validation loss is NaN or infinite.
            ConfigError: with several processes, if not all of them call it, with the same schedule.
        """
        meet(
            "Pruner.step",
            f"{type(self.schedule).__name__} {self.schedule.state_dict()}, loss given: {loss is not None}",
        )
        loss = self.loss() if loss is None else _finite(self._agreed(loss))
        improved = self.schedule.update(loss)
        if improved and self.schedule.restores:
            self._best = _snapshot(self.model)
        search = self.prune() if self.schedule.reached else None
        return PrunerStep(loss, improved, search, self.pruned)

    def plan(self) -> PruningPlan:
        """What a pruning step would do to the model as it is. Nothing changes."""
        scores = self._units.scores(self.model, self.importance, self.scope)
        search = self.amount.search(ScoredTrial(self, self._units, scores), self.schedule.progress)
        masks = (
            self._units.masks(scores, search.threshold) if search.threshold else dict(self.masks)
        )
        layers = []
        for name, score in scores.items():
            before = int((score == 0).sum())
            after = int(((score < search.threshold) | (score == 0)).sum())
            layers.append(LayerShare(name, score.numel(), before, after))
        return PruningPlan(self.granularity, search, tuple(layers), masks)

    def prune(self, plan: PruningPlan | None = None) -> ThresholdSearch:
        """One pruning step now. One-shot pruning is this call alone.

        When nothing more could be pruned, or the schedule has come to its end, :attr:`finished`
        becomes true.

        Args:
            plan: take this step. Default: restore the best weights of this stage (if the schedule
                does) and plan anew.
        """
        if plan is None:
            if self._best is not None:
                self.model.load_state_dict(self._best)
                apply_masks(self.model, self.masks)
            plan = self.plan()
        if self.on_plan is not None:
            self.on_plan(plan)
        search = plan.search
        whole = self.schedule.progress >= 1
        if search.threshold:
            self._set_masks(plan.masks)
        self.schedule.reset(search.loss)
        self.finished = self.schedule.done or (whole and not search.threshold)
        if self.schedule.restores:
            self._best = _snapshot(self.model)
        return search

    @property
    def pruned(self) -> float:
        """Share of all the model's parameters that are exactly zero."""
        total, nonzero = count_parameters(self.model)
        return 1 - nonzero / total

    @property
    def twt(self) -> float:
        """The tolerance of the bound on the loss; :class:`ConfigError` with another amount."""
        if not isinstance(self.amount, LossBound):
            raise ConfigError(f"there is no twt: the amount is {self.amount}")
        return self.amount.twt

    @twt.setter
    def twt(self, twt: float) -> None:
        self.amount = LossBound(twt)

    @property
    def plateau(self) -> Schedule:
        """The schedule."""
        return self.schedule

    # Measuring

    def loss(self) -> float:
        """The validation loss of the model as it is, averaged over the processes; NaN without
        ``evaluate``.

        Raises:
            DivergenceError: if it is NaN or infinite.
        """
        return self.measure() if self._evaluate is None else _finite(self.measure())

    def measure(self, cost: Callable[[nn.Module], float] | None = None) -> float:
        """What ``evaluate`` or another function says of the model as it is, averaged over the
        processes.
        """
        function = cost or self._evaluate
        if function is None:
            return math.nan
        with evaluation(self.model):
            return self._agreed(float(function(self.model)))

    def _agreed(self, value: float) -> float:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return mean_over_processes(value, device)

    # Saving and copying

    def state_dict(self) -> dict[str, Any]:
        """Masks, schedule and best weights: tensors and plain values only."""
        return {
            "masks": dict(self.masks),
            "schedule": self.schedule.state_dict(),
            "finished": self.finished,
            "best": self._best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; the model's weights are loaded by whoever saved them."""
        if self._pin is not None:
            self._pin.give_back()  # the weights may have been loaded under other masks
        self.masks = {name: mask.clone() for name, mask in state["masks"].items()}
        self.schedule.load_state_dict(state["schedule"])
        self.finished = bool(state["finished"])
        self._best = state["best"]
        self._apply()

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """A pruner of the copied model and of the copied optimizers: copy them together."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        if id(self.model) not in memo:
            memo.update(computed_memo(self.model))
        shared = {
            "_evaluate": self._evaluate,
            "importance": self.importance,
            "on_plan": self.on_plan,
        }
        for name, value in vars(self).items():
            setattr(twin, name, shared[name] if name in shared else copy.deepcopy(value, memo))
        if twin._pin is not None:  # it came with the copy of the model
            twin._pin.source = lambda: twin.masks
        remember(twin.model, twin.masks)
        return twin


def _either(name: str, given: object, **short: object) -> None:
    """An option, or its short form, but not both."""
    both = [key for key, value in short.items() if value is not None]
    if given is not None and both:
        raise ConfigError(
            f"{both[0]} is short for an option of {name}: give one of the two, not both"
        )


def _prunable(model: nn.Module, exclude: LayerFilter | None) -> dict[str, nn.Module]:
    layers = weighted_layers(model)
    default = [name] if (name := head(model)) is not None else []
    kept = select_layers(layers, default if exclude is None else exclude, "Pruner(exclude=...)")
    if not kept:
        why = (
            "the head is never pruned unless exclude=() says so"
            if exclude is None and layers
            else "none is left"
        )
        raise ConfigError(f"{type(model).__name__} has no layer to prune: {why}")
    return kept


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise DivergenceError(f"the validation loss is {loss}: lower the learning rate or lmbda")
    return loss


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}

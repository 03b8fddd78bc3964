"""The pruner, which holds schedule, amount, masks and their pin."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, Never

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from snello.errors import ConfigError, DivergenceError, check_state
from snello.graph import Example, evaluation
from snello.neurons import LayerFilter, Masks, apply_masks, count_parameters, masks_beside
from snello.optimizers import Optimizers, check_trained, optimizers_of
from snello.processes import mean_over_processes, meet
from snello.wrappers import computed_memo, unwrapped

from ._amount import Amount, LossBound, Ratio
from ._granularity import importance_for, units_for
from ._importance import Granularity, Importance
from ._limits import LayerLimits
from ._normalise import Normalise, normalise_of
from ._options import check_kinds
from ._pin import Pin, pins_of, remember, remembered
from ._plan import LayerShare, PrunerStep, PruningPlan
from ._plateau import Plateau
from ._quality import QualityBound
from ._renamed import refuse_renamed
from ._schedule import Cubic, Schedule
from ._snapshot import revive, snapshot
from ._threshold import ThresholdSearch, effective
from ._trial import ScoredTrial
from ._warnings import warn_of_averages, warn_of_unmasked_zeros
from .channels import ChannelImportance

Scope = Literal["global", "layer"]


class Pruner:
    """Prune the units with the lowest scores of a network, in steps that a schedule decides on.

    The default options are the method of the sensitivity papers, with normalised scores: on a
    plateau of the loss, restore the best weights and prune by magnitude as much as the bound on the
    loss allows. `normalise=None` is the papers' threshold on the magnitudes themselves.

    With several processes (DistributedDataParallel) call it on all of them: losses and costs are
    averaged, so that the masks are the same on all of them.

    Pruned weights stay exactly zero through the steps of every optimizer, also of one that is
    created later, through `load_state_dict` of other weights (with a warning) and in copies of
    the model, until [`remove`][snello.pruning.Pruner.remove]. The next pruner of the same model
    starts with these masks. Earlier copies of the weights, such as running averages, have to be
    registered with [`follow`][snello.pruning.Pruner.follow].

    Args:
        model: the model; its parameters are masked in place and never replaced. `DataParallel`,
            `DistributedDataParallel` and `torch.compile` are unwrapped.
        optimizer: the optimizer that trains it; a list if there are several; None if there is none
            yet. Every prunable parameter that is trained must be in one of them. Wrappers with an
            attribute `optimizer` (Accelerate, Lightning) are unwrapped.
        evaluate: returns the validation loss of a model; called in evaluation mode without
            gradients. Only [`LossBound`][snello.pruning.LossBound] needs it.
        granularity: "weight" prunes single weights; "neuron" prunes whole neurons, with their bias
            and the scale and shift of the BatchNorm that reads them alone, so that a pruned neuron
            is exactly zero; "channel" prunes coupled channels (of a residual stream, or whole
            heads), with all slices that write, scale or read them, so that
            [`snello.simplify`][snello.simplification.simplify] needs no index operation.
        scope: "global" has one threshold for the units of all layers; "layer" prunes the same share
            of every layer: it is `normalise="rank"`, and the argument `normalise` is ignored.
        importance: scores of the units: "l1" (for neurons, the mean magnitude), "l2", "han",
            "bn-scale", "random", or a function such as those that [`taylor`][snello.pruning.taylor]
            and [`snello.sensitivity.serene_scores`][] return. For channels: those of
            [`snello.pruning.channels`][].
        normalise: normalisation of the scores across layers: "mean", "max", "standard", "rank", or
            None for a threshold on the scores themselves; see
            [`comparable`][snello.pruning.comparable]. "auto" is the attribute `normalise` of the
            function if it has one (None for [`taylor`][snello.pruning.taylor], whose scores are all
            in units of the loss), else "mean".
        amount: how much one step removes: [`LossBound`][snello.pruning.LossBound],
            [`Ratio`][snello.pruning.Ratio] or [`Budget`][snello.pruning.Budget]. Default:
            `LossBound(0.05)`.
        schedule: when: [`Plateau`][snello.pruning.Plateau], [`OneShot`][snello.pruning.OneShot] or
            [`Cubic`][snello.pruning.Cubic]. Default: `Plateau(5)`.
        exclude: layers that are never pruned: their names or types, or a function of name and
            module. The default is the head.
        limits: lower limits on what every layer keeps; see
            [`LayerLimits`][snello.pruning.LayerLimits].
        quality: a bound on a metric such as the accuracy: pruning is postponed while the metric is
            at chance, and ends when it has fallen too far; see
            [`QualityBound`][snello.pruning.QualityBound].
        example_inputs: inputs on which the model runs, for the granularity "channel"; and for
            "neuron" if the model has BatchNorm and torch.fx cannot trace it.
        round_to: number of which every width that is pruned stays a multiple, for hardware that is
            faster at 8 or 16; only for the granularity "channel".
        on_plan: called with the plan before every pruning step; `print` shows it.

    Attributes:
        masks: parameter with pruned entries -> boolean mask of its kept entries.
        left_alone: layer name -> why it is never pruned: its weight is computed (weight norm, other
            parametrisations, masks of `torch.nn.utils.prune`), its channels are pinned, or the
            statistics of a norm depend on their number.
        finished: True once no further step will prune anything.

    Raises:
        ConfigError: for numbers outside their range, unknown names, and keywords of earlier
            versions (with the new spelling); for an optimizer of another model, and optimizers
            that leave out a prunable parameter; for a model whose parameters are sharded, or
            without a layer to prune.
        ModelError: for a model that does not run on the example inputs; and if neurons are to be
            pruned, without example inputs, in a model with BatchNorm that torch.fx cannot trace.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        evaluate: Callable[[nn.Module], float] | None = None,
        *,
        granularity: Granularity = "weight",
        scope: Scope = "global",
        importance: str | Importance | ChannelImportance = "l1",
        normalise: Normalise | Literal["auto"] | None = "auto",
        amount: Amount | None = None,
        schedule: Schedule | None = None,
        exclude: LayerFilter | None = None,
        limits: LayerLimits | None = None,
        quality: QualityBound | None = None,
        example_inputs: Example | None = None,
        round_to: int = 1,
        on_plan: Callable[[PruningPlan], object] | None = None,
        **renamed: Never,
    ) -> None:
        refuse_renamed(renamed)
        if scope not in ("global", "layer"):
            raise ConfigError(f"scope is 'global' or 'layer', not {scope!r}")
        self.model = model = unwrapped(model, "Pruner")
        self.granularity, self.scope = granularity, scope
        self.importance: Any = importance_for(granularity, importance)
        self.on_plan = on_plan
        chosen = "rank" if scope == "layer" else normalise
        self.normalise = normalise_of(chosen, self.importance)
        self.amount: Amount = LossBound() if amount is None else amount
        # A copy, because schedules have state and options may be shared by several pruners.
        self.schedule: Schedule = Plateau() if schedule is None else copy.deepcopy(schedule)
        self.limits, self.quality = LayerLimits() if limits is None else limits, quality
        self._evaluate = evaluate
        self._check_options()
        self._units = units_for(model, granularity, exclude, example_inputs, round_to)
        self.left_alone = self._units.left_alone
        if not self._units.layers:
            raise ConfigError(
                f"{type(model).__name__} has no layer to prune; left alone: {self.left_alone}"
            )
        self.limits.check_names(self._units.layers)
        self._optimizers = self._checked(optimizer)
        self.masks: Masks = {}
        self.finished = False
        self._best: dict[str, Tensor] | None = None
        self._dense = None if quality is None else quality.dense
        self._before: dict[str, dict[str, Tensor]] | None = None
        self._ended = False
        self._followers: list[nn.Module] = []
        self._pin: Pin | None = None
        for inherited in [held for held in pins_of(model) if held.inherited]:
            inherited.remove()  # its masks are remembered
        if known := remembered(model):
            self._set_masks(known)
        warn_of_unmasked_zeros(model, self._units, self.masks)
        self._pin_now()

    def _check_options(self) -> None:
        check_kinds(self.amount, self.schedule, self.limits, self.quality)
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
        """Use other optimizers than those given first; after
        [`remove`][snello.pruning.Pruner.remove], also pin again.

        Raises:
            ConfigError: for an optimizer of another model, and optimizers that leave out a prunable
                parameter.
        """
        self._optimizers = self._checked(optimizer)
        apply_masks(self.model, self.masks)
        self._pin_now()

    def remove(self) -> None:
        """Remove the pin: pruned weights can change again. The masks are kept."""
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
        """Also mask another model with the same parameters, now and after every pruning step.

        This is for a running average of the weights (`torch.optim.swa_utils.AveragedModel`),
        which would otherwise still contain earlier values of the pruned weights.

        Raises:
            ConfigError: if the masks do not fit the model.
        """
        inner = model.module if isinstance(model, AveragedModel) else getattr(model, "module", None)
        inner = unwrapped(inner if isinstance(inner, nn.Module) else model, "Pruner.follow")
        apply_masks(inner, self.masks)
        if all(inner is not known for known in self._followers):
            self._followers.append(inner)

    def adopt(self, masks: Masks) -> None:
        """Add masks to those of the pruner; see [`import_masks`][snello.pruning.import_masks] and
        [`zero_masks`][snello.pruning.zero_masks].

        Raises:
            ConfigError: for a mask that does not fit the model.
        """
        apply_masks(self.model, masks)
        self._set_masks(masks)

    def _set_masks(self, masks: Masks) -> None:
        """Add masks: an entry that is pruned already stays pruned."""
        known, given = (masks_beside(self.model, kept) for kept in (self.masks, masks))
        grown = {
            name: mask & known[name] if name in known else mask for name, mask in given.items()
        }
        self.masks = {**known, **grown}
        self._apply()
        warn_of_averages(self.model, self._followers)

    def _apply(self) -> None:
        remember(self.model, self.masks)
        for model in (self.model, *self._followers):
            apply_masks(model, self.masks)

    # Pruning

    def step(self, loss: float | None = None) -> PrunerStep:
        """Update the schedule, and prune if a step is due. Call it once per epoch.

        With a [`Plateau`][snello.pruning.Plateau], the best weights are restored before a pruning
        step.

        Args:
            loss: the present validation loss, if it has been measured already.

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
            self._best = snapshot(self.model)
        search = self.prune() if self.schedule.reached and not self._ended else None
        return PrunerStep(loss, improved, search, self.pruned)

    def plan(self) -> PruningPlan:
        """Plan a pruning step of the present model, without changing it.

        Warns if a layer would lose nearly all of its units, or if no layer may lose more.
        """
        scores = self._units.scores(self.model, self.importance, self.normalise, self.limits)
        trial = ScoredTrial(self, self._units, scores, self._dense_quality())
        search = effective(self.amount.search(trial, self.schedule.progress), trial.scores)
        masks = (
            self._units.masks(scores, search.threshold) if search.threshold else dict(self.masks)
        )
        layers = []
        for name, score in scores.items():
            before = int((score == 0).sum())
            after = int(((score < search.threshold) | (score == 0)).sum())
            least = self._units.least(name, self.limits)
            layers.append(LayerShare(name, score.numel(), before, after, least))
        plan = PruningPlan(self.granularity, search, tuple(layers), masks)
        for text in plan.warnings:
            warnings.warn(f"Pruner: {text}", stacklevel=2)
        return plan

    def prune(self, plan: PruningPlan | None = None) -> ThresholdSearch:
        """Take a pruning step now, whatever the schedule. One-shot pruning is this call alone.

        `finished` becomes True if nothing more can be pruned, if this was the last step of
        the schedule, or if the quality is below its bound; then the last step is undone.

        Args:
            plan: the step to take, without a check of the quality. Default: restore the best
                weights of this stage (if the schedule does so), check the quality, and plan.

        Returns:
            The search. Its threshold is 0 if nothing was pruned, with a `note` if the quality
            was the reason.
        """
        if plan is None:
            if note := self._refusal():
                return ThresholdSearch(0.0, math.nan, math.inf, 0, note=note)
            plan = self.plan()
        if self.on_plan is not None:
            self.on_plan(plan)
        search = plan.search
        whole = self.schedule.progress >= 1
        if search.threshold:
            if self.quality is not None and self.quality.max_drop is not None:
                # One more copy of the weights, to be able to undo the step.
                self._dense = self._dense_quality()
                self._before = {"weights": snapshot(self.model), "masks": dict(self.masks)}
            self._set_masks(plan.masks)
        self.schedule.reset(search.loss)
        self.finished = self.schedule.done or (whole and not search.threshold)
        if self.schedule.restores:
            self._best = snapshot(self.model)
        return search

    @property
    def pruned(self) -> float:
        """Share of all the model's parameters that are exactly zero."""
        total, nonzero = count_parameters(self.model)
        return 1 - nonzero / total

    # The bound on the quality

    @property
    def dense_quality(self) -> float | None:
        """Quality of the dense network, the reference of the bound.

        None before the first pruning step, and without a
        [`QualityBound`][snello.pruning.QualityBound].
        """
        return self._dense

    def _dense_quality(self) -> float:
        """Quality of the dense network (the present one before the first step); NaN if unused."""
        if self._dense is not None:
            return self._dense
        if self.quality is None or self.quality.max_drop is None:
            return math.nan
        return self.measure(self.quality.measure)

    def _refusal(self) -> str:
        """Restore the best weights; return why they must not be pruned, or an empty text."""
        if self._ended:
            return "the bound on the quality was reached before: pruning has ended"
        present = None if self._best is None or self.quality is None else snapshot(self.model)
        if self._best is not None:
            self._load(self._best)
        if self.quality is None:
            return ""
        value = self.measure(self.quality.measure)
        if self.quality.at_chance(value):
            if present is not None:  # no step is taken: keep the progress since the best epoch
                self._load(present)
            return (
                f"waiting: a quality of {value:.4g} is not above chance ({self.quality.chance:.4g})"
            )
        self._dense = value if self._dense is None else self._dense
        if not self.quality.broken(value, self._dense):
            return ""
        self._end()
        return (
            f"a quality of {value:.4g} is more than max_drop={self.quality.max_drop:g} below "
            f"{self._dense:.4g}, that of the dense network: the last pruning is undone, none follows"
        )

    def _load(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)
        apply_masks(self.model, self.masks)

    def _end(self) -> None:
        """Undo the last pruning step, and end pruning."""
        self._ended = self.finished = True
        if self._before is not None:
            pruned, self.masks = self.masks, masks_beside(self.model, self._before["masks"])
            self._load(self._before["weights"])
            for follower in self._followers:
                revive(follower, self.model, pruned, self.masks)
            self._before = None
        self._apply()
        self.schedule.reset(self.loss())
        if self.schedule.restores:
            self._best = snapshot(self.model)

    # Measuring

    def bounded_loss(self, dense: float) -> float:
        """The present validation loss; infinite if the quality breaks the bound.

        Args:
            dense: quality of the dense network, the reference of the bound.
        """
        loss = self.measure()
        if self.quality is None or self.quality.max_drop is None:
            return loss
        return math.inf if self.quality.broken(self.measure(self.quality.measure), dense) else loss

    def loss(self) -> float:
        """The present validation loss, averaged over the processes; NaN without `evaluate`.

        Raises:
            DivergenceError: if it is NaN or infinite.
        """
        return self.measure() if self._evaluate is None else _finite(self.measure())

    def measure(self, cost: Callable[[nn.Module], float] | None = None) -> float:
        """Measure the present model in evaluation mode, averaged over the processes.

        Args:
            cost: the function to measure; None for `evaluate`. NaN if there is neither.
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
            "dense": self._dense,
            "before": self._before,
            "ended": self._ended,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. The weights of the model are not part of it.

        Raises:
            ConfigError: for a state of something else, of another model or another schedule, which
                changes nothing.
        """
        check_state(state, _STATE, "Pruner", _LATER)
        masks = masks_beside(self.model, state["masks"])
        self.schedule.load_state_dict(state["schedule"])
        if self._pin is not None:
            self._pin.give_back()  # the weights may have been loaded under other masks
        self.masks = masks
        self.finished = state["finished"]
        self._best = state["best"]
        self._dense = state.get("dense", self._dense)
        self._before, self._ended = state.get("before"), state.get("ended", False)
        self._apply()

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """A pruner of the copied model and optimizers; copy all of them in one `deepcopy`."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        if id(self.model) not in memo:
            memo.update(computed_memo(self.model))
        shared = {
            "_evaluate": self._evaluate,
            "importance": self.importance,
            "quality": self.quality,
            "on_plan": self.on_plan,
        }
        for name, value in vars(self).items():
            setattr(twin, name, shared[name] if name in shared else copy.deepcopy(value, memo))
        if twin._pin is not None:  # it was copied with the model, with fixed masks
            twin._pin.source = lambda: twin.masks
        remember(twin.model, twin.masks)
        return twin


_WEIGHTS = dict[str, Tensor]
_STATE = {"masks": _WEIGHTS, "schedule": dict, "finished": bool, "best": _WEIGHTS | None}
# States of earlier versions have no entries for the bound on the quality.
_LATER = {"dense": float | None, "before": dict[str, _WEIGHTS] | None, "ended": bool}


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise DivergenceError(f"the validation loss is {loss}: lower the learning rate or lmbda")
    return loss

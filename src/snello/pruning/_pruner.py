"""The pruner: plateau, threshold, masks and their pinning, in one stateful object."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, DivergenceError
from snello.graph import evaluation, trace
from snello.neurons import (
    Masks,
    apply_masks,
    count_parameters,
    head,
    iter_rows,
    select_layers,
    spread,
    weighted_layers,
)

from ._pin import pin
from ._plateau import Plateau
from ._threshold import ThresholdSearch, search_threshold

Granularity = Literal["weight", "neuron"]


@dataclass(frozen=True)
class PrunerStep:
    """What one call of :meth:`Pruner.step` did.

    Attributes:
        loss: the validation loss that was measured.
        improved: whether it is the best of this stage by the tolerance.
        search: how the threshold was found, if a pruning step was taken; None otherwise.
        pruned: share of all the model's parameters that are exactly zero now.
    """

    loss: float
    improved: bool
    search: ThresholdSearch | None
    pruned: float


class Pruner:
    """Iterative pruning under a bound on the loss.

    Args:
        model: the model; its parameters are masked in place and never replaced.
        optimizer: the optimizer whose steps must not revive what was pruned.
        evaluate: returns the validation loss of a model; called in evaluation mode without gradients.
        granularity: "weight" prunes single weights by magnitude; "neuron" prunes whole neurons by the mean
            magnitude of their weights, with their bias and the scale and shift of the BatchNorm that reads
            them alone, so that a pruned neuron is exactly zero.
        twt: threshold worsening tolerance: one pruning step may worsen the loss to ``(1 + twt) * loss``.
        pwe: plateau waiting epochs.
        tolerance: what counts as an improvement, as a share of the best loss.
        exclude: names of layers that are never pruned. By default none for weights, the head for neurons
            (its neurons are the classes).

    Raises:
        ConfigError: for numbers outside their range and unknown layer names.
        ModelError: if neurons are to be pruned in a model that torch.fx cannot trace.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        evaluate: Callable[[nn.Module], float],
        *,
        granularity: Granularity = "weight",
        twt: float = 0.05,
        pwe: int = 5,
        tolerance: float = 0.01,
        exclude: Iterable[str] | None = None,
    ) -> None:
        if granularity not in ("weight", "neuron"):
            raise ConfigError(f"granularity is 'weight' or 'neuron', not {granularity!r}")
        if not (math.isfinite(twt) and twt >= 0):
            raise ConfigError(f"twt is how much worse the loss may get: a number >= 0, not {twt}")
        self.model, self.granularity, self.twt = model, granularity, twt
        self._evaluate = evaluate
        self.plateau = Plateau(pwe, tolerance)
        default = [name] if granularity == "neuron" and (name := head(model)) else []
        layers = weighted_layers(model)
        self._layers = select_layers(layers, default if exclude is None else exclude, "Pruner(exclude=...)")
        self._norms = _norms_after(model, self._layers) if granularity == "neuron" else {}
        self.masks: Masks = {}
        self.finished = False
        self._best: dict[str, Tensor] | None = None
        self._pin = pin(model, optimizer, lambda: self.masks)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Pin the masks through another optimizer than the one given first."""
        self._pin.remove()
        self._pin = pin(self.model, optimizer, lambda: self.masks)

    def remove(self) -> None:
        """Let go of the optimizer: pruned weights may move again."""
        self._pin.remove()

    def step(self, loss: float | None = None) -> PrunerStep:
        """Once per epoch: on a plateau of the loss, restore the best weights and prune.

        Args:
            loss: the validation loss of the model as it is, if it has been measured already.

        Raises:
            DivergenceError: if the validation loss is NaN or infinite.
        """
        loss = self.loss() if loss is None else _finite(loss)
        improved = self.plateau.update(loss)
        if improved:
            self._best = _snapshot(self.model)
        if not self.plateau.reached:
            return PrunerStep(loss, improved, None, self.pruned)
        return PrunerStep(loss, improved, self.prune(), self.pruned)

    def prune(self) -> ThresholdSearch:
        """One pruning step now, from the best weights of this stage. One-shot pruning is this call alone.

        The step may worsen the loss to ``(1 + twt)`` times the loss of those weights. When nothing could be
        pruned, :attr:`finished` becomes true.
        """
        if self._best is not None:
            self.model.load_state_dict(self._best)
            apply_masks(self.model, self.masks)
        loss = self.loss()
        scores = self._scores()
        everything = torch.cat([score.flatten() for score in scores.values()])
        search = search_threshold(
            everything,
            lambda threshold: self._loss_at(scores, threshold),
            loss=loss,
            bound=(1 + self.twt) * loss,
            start=_mean_of_layer_means(scores),
        )
        self.finished = search.threshold == 0
        if not self.finished:
            self.masks = self._masks_at(scores, search.threshold)
            apply_masks(self.model, self.masks)
        self.plateau.reset(search.loss)
        self._best = _snapshot(self.model)
        return search

    @property
    def pruned(self) -> float:
        """Share of all the model's parameters that are exactly zero."""
        total, nonzero = count_parameters(self.model)
        return 1 - nonzero / total

    def loss(self) -> float:
        """The validation loss of the model as it is.

        Raises:
            DivergenceError: if it is NaN or infinite.
        """
        return _finite(self._measure())

    def _measure(self) -> float:
        with evaluation(self.model):
            return float(self._evaluate(self.model))

    def _scores(self) -> dict[str, Tensor]:
        """Layer name -> magnitude of each weight, or mean magnitude of each neuron's weights."""
        if self.granularity == "weight":
            return {name: m.weight.detach().abs() for name, m in self._layers.items()}  # type: ignore[union-attr, operator]
        return {name: grouped.detach().abs().mean(1) for name, _, grouped in iter_rows(self._layers)}

    def _masks_at(self, scores: dict[str, Tensor], threshold: float) -> Masks:
        """What a threshold keeps. What is zero already stays pruned, whatever the threshold."""
        masks: Masks = {}
        for name, score in scores.items():
            keep, module = (score >= threshold) & (score > 0), self._layers[name]
            if self.granularity == "weight":
                masks[f"{name}.weight"] = keep
                continue
            weight: Tensor = module.weight  # type: ignore[assignment]
            masks[f"{name}.weight"] = spread(module, keep).expand_as(weight).contiguous()
            if module.bias is not None:
                masks[f"{name}.bias"] = keep
            if norm := self._norms.get(name):
                masks[f"{norm}.weight"] = masks[f"{norm}.bias"] = keep
        return masks

    def _loss_at(self, scores: dict[str, Tensor], threshold: float) -> float:
        masks = self._masks_at(scores, threshold)
        parameters = dict(self.model.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in masks}
        apply_masks(self.model, masks)
        try:
            return self._measure()
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Masks, plateau and best weights: tensors and plain values only."""
        return {
            "masks": dict(self.masks),
            "plateau": self.plateau.state_dict(),
            "finished": self.finished,
            "best": self._best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; the model's weights are loaded by whoever saved them."""
        self.masks = {name: mask.clone() for name, mask in state["masks"].items()}
        self.plateau = Plateau(**state["plateau"])
        self.finished = bool(state["finished"])
        self._best = state["best"]


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise DivergenceError(f"the validation loss is {loss}: lower the learning rate or lmbda")
    return loss


def _norms_after(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Layer name -> the affine BatchNorm that alone reads it."""
    graph = trace(model)
    found = {name: norm for name in layers if (norm := graph.norm_after(name)) is not None}
    return {name: norm for name, norm in found.items() if model.get_submodule(norm).weight is not None}


def _mean_of_layer_means(scores: dict[str, Tensor]) -> float:
    means = [float(score[score > 0].mean()) for score in scores.values() if bool((score > 0).any())]
    return sum(means) / len(means) if means else 0.0


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}

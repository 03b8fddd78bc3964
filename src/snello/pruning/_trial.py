"""Trying thresholds on a model, and leaving it as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from snello.neurons import apply_masks, masked_parameters

from ._amount import Cost
from ._channel_units import ChannelUnits
from ._units import Units


class Measurer(Protocol):
    """A model and how to measure it."""

    model: nn.Module

    def loss(self) -> float:
        """The loss of the model as it is; refuses NaN and infinity."""

    def measure(self, cost: Callable[[nn.Module], float] | None = None) -> float:
        """The loss, or a cost, of the model as it is."""

    def bounded_loss(self, dense: float) -> float:
        """The loss of the model as it is; infinite where its quality breaks a bound."""


class ScoredTrial:
    """The trial of an amount, on scored units; see :class:`snello.pruning.Trial`.

    Args:
        measurer: the model.
        units: what may be pruned in it.
        scores: layer name -> score of each unit.
        dense: quality of the dense network; NaN without a bound on the quality.
    """

    def __init__(
        self,
        measurer: Measurer,
        units: Units | ChannelUnits,
        scores: dict[str, Tensor],
        dense: float = math.nan,
    ) -> None:
        self._measurer, self._units, self._scores = measurer, units, scores
        self._dense = dense
        self._flat: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """The score of every unit, one dimension."""
        if self._flat is None:
            self._flat = torch.cat([score.flatten() for score in self._scores.values()])
        return self._flat

    @property
    def start(self) -> float:
        """The mean over layers of the mean score of what may be pruned and is not yet."""
        live = [score[(score > 0) & score.isfinite()] for score in self._scores.values()]
        means = [float(score.mean()) for score in live if len(score)]
        return sum(means) / len(means) if means else 0.0

    def loss(self, threshold: float = 0.0) -> float:
        """The loss with everything below the threshold pruned. NaN is an answer, but not at
        threshold 0.
        """
        return self._at(threshold, self._measurer.measure) if threshold else self._measurer.loss()

    def bounded_loss(self, threshold: float) -> float:
        """The loss with everything below the threshold pruned, or infinity; see
        :class:`snello.pruning.Trial`.
        """
        return self._at(threshold, lambda: self._measurer.bounded_loss(self._dense))

    def cost(self, measure: Cost, threshold: float) -> float:
        """A cost with everything below the threshold pruned."""
        return self._at(threshold, lambda: self._measurer.measure(measure))

    def _at(self, threshold: float, measured: Callable[[], float]) -> float:
        model = self._measurer.model
        masks = self._units.masks(self._scores, threshold)
        parameters = masked_parameters(model, masks)
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        apply_masks(model, masks)
        try:
            return measured()
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)

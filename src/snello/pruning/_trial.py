"""Measurements of a model at trial thresholds, after which its weights are restored."""

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
    """A model with functions that measure it."""

    model: nn.Module

    def loss(self) -> float:
        """The present loss of the model.

        Raises:
            DivergenceError: if it is NaN or infinite.
        """

    def measure(self, cost: Callable[[nn.Module], float] | None = None) -> float:
        """The present loss of the model, or a cost."""

    def bounded_loss(self, dense: float) -> float:
        """The present loss of the model; infinite if its quality breaks a bound."""


class ScoredTrial:
    """The trial of an amount, on scored units; see [`snello.pruning.Trial`][].

    Args:
        measurer: the model and its measurements.
        units: its units.
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
        """The mean over layers of the mean score of the units that may be pruned."""
        live = [score[(score > 0) & score.isfinite()] for score in self._scores.values()]
        means = [float(score.mean()) for score in live if len(score)]
        return sum(means) / len(means) if means else 0.0

    def loss(self, threshold: float = 0.0) -> float:
        """The loss with everything below the threshold pruned; it may be NaN or infinite.

        Raises:
            DivergenceError: at threshold 0, if it is NaN or infinite.
        """
        return self._at(threshold, self._measurer.measure) if threshold else self._measurer.loss()

    def bounded_loss(self, threshold: float) -> float:
        """The loss with everything below the threshold pruned, or infinity; see
        [`snello.pruning.Trial`][].
        """
        return self._at(threshold, lambda: self._measurer.bounded_loss(self._dense))

    def cost(self, measure: Cost, threshold: float) -> float:
        """A cost with everything below the threshold pruned."""
        return self._at(threshold, lambda: self._measurer.measure(measure))

    def _at(self, threshold: float, measured: Callable[[], float]) -> float:
        """Measure with everything below the threshold pruned, then restore the weights."""
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

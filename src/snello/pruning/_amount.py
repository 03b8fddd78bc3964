"""Amounts to prune: up to a bound on the loss, a share of the units, or down to a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.neurons import count_parameters

from ._threshold import ThresholdSearch, prunable, search_threshold

Cost = Callable[[nn.Module], float]
"""Cost of a model: parameters, MACs, milliseconds, joules. Less is better."""


class Trial(Protocol):
    """The measurements with which an amount finds a threshold. None of them changes the model."""

    @property
    def scores(self) -> Tensor:
        """Score of each unit, one dimension: 0 if already pruned, infinite if protected."""

    @property
    def start(self) -> float:
        """The first threshold to test."""

    def loss(self, threshold: float = 0.0) -> float:
        """The validation loss with everything below the threshold pruned; NaN without an
        `evaluate`.
        """

    def bounded_loss(self, threshold: float) -> float:
        """`loss`; infinite if a `QualityBound` is broken at that threshold."""

    def cost(self, measure: Cost, threshold: float) -> float:
        """The cost of the model with everything below the threshold pruned."""


class Amount(Protocol):
    """The amount that one pruning step removes."""

    needs_loss: bool

    def search(self, trial: Trial, progress: float) -> ThresholdSearch:
        """Find a threshold and test it.

        Args:
            trial: scores and measurements of the model.
            progress: share of the amount that the schedule asks for by now, in (0, 1].
                [`LossBound`][snello.pruning.LossBound] and [`Budget`][snello.pruning.Budget] ignore
                it.
        """


@dataclass(frozen=True)
class LossBound:
    """TWT: the largest amount with a validation loss of at most `(1 + twt)` times the present.

    The published method has one threshold on the magnitudes of all layers: `Pruner(...,
    normalise=None)`.

    Attributes:
        twt: threshold worsening tolerance.
    """

    twt: float = 0.05
    needs_loss = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.twt) and self.twt >= 0):
            raise ConfigError(
                f"twt is how much worse the loss may get: a number >= 0, not {self.twt}"
            )

    def search(self, trial: Trial, progress: float) -> ThresholdSearch:
        """Bisect; see `search_threshold`. `progress` is ignored.

        Raises:
            ConfigError: for a negative loss, of which a higher multiple is lower.
        """
        loss = trial.loss()
        if loss < 0:
            raise ConfigError(
                f"LossBound: the validation loss is {loss:g}, and a bound relative to it has no meaning below 0: "
                "let evaluate return a loss such as the cross-entropy, or use Ratio and QualityBound"
            )
        return search_threshold(
            trial.scores,
            trial.bounded_loss,
            loss=loss,
            bound=(1 + self.twt) * loss,
            start=trial.start,
        )


@dataclass(frozen=True)
class Ratio:
    """A share of the units (weights or neurons) of the layers that may be pruned.

    Attributes:
        share: in [0, 1]. The pruned share never exceeds it; it is smaller in the case of ties, and
            if layers reach the minimum of [`LayerLimits`][snello.pruning.LayerLimits].
        of_rest: whether the share is one of the units that are left, not of all units: 0.2 then
            removes a fifth of the remaining units in each step.
    """

    share: float
    of_rest: bool = False
    needs_loss = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"a pruning ratio is a share: 0 <= share <= 1, not {self.share}")

    def search(self, trial: Trial, progress: float) -> ThresholdSearch:
        """Find the threshold from the order of the scores."""
        units, left = len(trial.scores), int((trial.scores > 0).sum())
        share = self.share * progress
        # A share times a count may fall short of a whole number by rounding alone.
        gone = 0 if self.of_rest else units - left
        taken = math.floor(share * (gone + left) + 1e-6) - gone
        threshold = _below(prunable(trial.scores), taken)
        return ThresholdSearch(threshold, trial.loss(threshold), math.inf, 1)


@dataclass(frozen=True)
class Budget:
    """The smallest amount for which the cost of the model is within a limit.

    Attributes:
        limit: largest cost of the model, in the units of `cost`.
        cost: measures a model whose pruned weights are zero:
            [`nonzero_parameters`][snello.pruning.nonzero_parameters],
            [`nonzero_macs`][snello.pruning.nonzero_macs], or your own function, such as the latency
            of the simplified model:
            `lambda model: snello.measure(snello.simplify(model, x), x).latencies["pytorch"].median_ms`.
    """

    limit: float
    cost: Cost
    needs_loss = False

    def __post_init__(self) -> None:
        if not self.limit >= 0:
            raise ConfigError(
                f"the limit of a budget is what the model may cost: >= 0, not {self.limit}"
            )

    def search(self, trial: Trial, progress: float) -> ThresholdSearch:
        """Bisect over the number of units. The model is measured at the threshold that is returned.

        `progress` is ignored.

        Raises:
            ConfigError: if the model costs more even with everything pruned.
        """
        live = prunable(trial.scores)
        present = trial.cost(self.cost, 0.0)
        if present <= self.limit:
            return ThresholdSearch(0.0, trial.loss(), math.inf, 1, present)
        low, high = 0, len(live)
        best = trial.cost(self.cost, _below(live, high))
        trials = 2
        if not best <= self.limit:  # NaN, too
            raise ConfigError(
                f"the budget of {self.limit:g} cannot be met: the model costs {present:g} now, and {best:g} with "
                "everything pruned that may be; raise the limit, exclude less, or lower keep_at_least"
            )
        while high - low > 1:
            middle = (low + high) // 2
            measured = trial.cost(self.cost, _below(live, middle))
            trials += 1
            if measured <= self.limit:
                high, best = middle, measured
            else:
                low = middle
        threshold = _below(live, high)
        return ThresholdSearch(threshold, trial.loss(threshold), math.inf, trials, best)


def nonzero_parameters(model: nn.Module) -> float:
    """A cost: the number of parameters that are not zero, tied ones once."""
    return float(count_parameters(model)[1])


def _below(live: Tensor, taken: int) -> float:
    """The threshold below which there are `taken` of the scores, or fewer if there are ties.

    Args:
        live: scores in ascending order.
        taken: number of scores.
    """
    if taken <= 0 or not len(live):
        return 0.0
    if taken >= len(live):
        return float(torch.nextafter(live[-1], live.new_tensor(math.inf)))
    return float(live[taken])

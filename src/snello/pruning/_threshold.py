"""TWT: bisection for the largest threshold within a bound on the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class ThresholdSearch:
    """The outcome of a search.

    Attributes:
        threshold: the largest threshold that was tested and whose loss was within the bound; 0 if
            none was.
        loss: the loss that was measured at this threshold.
        bound: largest loss allowed.
        trials: number of thresholds tested.
        cost: the cost of the model at this threshold, for a [`Budget`][snello.pruning.Budget]; else
            None.
        note: why nothing was pruned, if a [`QualityBound`][snello.pruning.QualityBound] was the
            reason.
    """

    threshold: float
    loss: float
    bound: float
    trials: int
    cost: float | None = None
    note: str = ""


def prunable(scores: Tensor) -> Tensor:
    """The scores of the units that may be pruned, ascending.

    Zeros are pruned already, infinities are protected.
    """
    return scores[(scores > 0) & scores.isfinite()].sort().values


def effective(search: ThresholdSearch, scores: Tensor) -> ThresholdSearch:
    """The search, with threshold 0 if it prunes none of the scores.

    A threshold can lie below the smallest score, or equal the smallest of several.
    """
    prunes = bool((prunable(scores) < search.threshold).any())
    return search if prunes else replace(search, threshold=0.0)


def search_threshold(
    scores: Tensor,
    loss_at: Callable[[float], float],
    *,
    loss: float,
    bound: float,
    start: float,
    max_trials: int = 24,
) -> ThresholdSearch:
    """The largest threshold T such that pruning every score below T keeps the loss within the
    bound.

    The search starts at `start`, continues above it if the bound holds there and below it if not,
    and stops if no score lies inside the bracket, if the distance to the bound is below 5 % of the
    allowed increase, or if the bracket is narrower than 1e-10. The returned threshold was tested;
    the published procedure returns the last midpoint untested and can exceed its bound.

    Args:
        scores: all scores, one dimension; zeros are pruned already, infinities are protected.
        loss_at: measures the loss with everything below a threshold pruned.
        loss: the loss with nothing more pruned (threshold 0).
        bound: the loss allowed.
        start: the first threshold tested.
        max_trials: limit on the number of measurements.

    Source: Tartaglione et al. (2022), section 3.3; the stopping rule is snello's.
    """
    live = prunable(scores)
    if not len(live):
        return ThresholdSearch(0.0, loss, bound, 0)
    low, low_loss, high = 0.0, loss, float(live[-1]) * (1 + 1e-6)
    threshold, trials = min(start, high), 0
    while trials < max_trials and high - low > 1e-10 and _between(live, low, threshold, high):
        measured = loss_at(threshold)
        trials += 1
        if measured <= bound:
            low, low_loss = threshold, measured
            if bound - measured < 0.05 * (bound - loss):
                break
        else:  # NaN lands here: it is not within any bound
            high = threshold
        threshold = (low + high) / 2
    return ThresholdSearch(low, low_loss, bound, trials)


def _between(live: Tensor, low: float, threshold: float, high: float) -> bool:
    """True if a score lies in [low, high); if not, all thresholds in it prune the same units."""
    return int((live < high).sum()) > int((live < low).sum()) and threshold > low

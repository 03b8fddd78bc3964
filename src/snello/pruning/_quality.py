"""A bound on the quality of the network over the whole run, and the quality at chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from snello.errors import ConfigError

MARGIN = 3.0
"""Standard errors by which a quality has to exceed chance before anything is pruned."""


@dataclass(frozen=True)
class QualityBound:
    """A metric such as the accuracy, and the largest loss of it over all pruning steps.

    It adds two rules. *Waiting*: nothing is pruned while the network is at chance, that is, while
    the metric is not above `chance + 3 * sqrt(chance * (1 - chance) / samples)` (three standard
    errors of the accuracy of a random guess). *Ending*: if a pruning step is due and the network,
    after the training since the last step, is more than `max_drop` below the dense network, the
    last step is undone and no other follows. [`LossBound`][snello.pruning.LossBound] also tests its
    thresholds against `max_drop`, so that its steps keep the bound even before fine-tuning.

    Attributes:
        measure: returns the metric of a model on validation data, higher is better; called in
            evaluation mode without gradients, averaged over the processes.
        max_drop: the largest drop below the dense network, in the units of the metric (0.01 is one
            point of accuracy); None: no bound.
        chance: the metric of an untrained network: for an accuracy 1 / classes, or the share of the
            most frequent class; None: pruning never waits.
        samples: number of validation samples on which the metric is measured, for the standard
            error.
        dense: the metric of the dense network. Default: measured at the first pruning step.

    Raises:
        ConfigError: for numbers outside their range, and if neither rule is asked for.
    """

    measure: Callable[[nn.Module], float]
    max_drop: float | None = None
    chance: float | None = None
    samples: int = 1000
    dense: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.measure):
            raise ConfigError(
                f"measure is a function from the model to its quality, not {self.measure!r}"
            )
        if self.max_drop is None and self.chance is None:
            raise ConfigError("a bound on the quality needs max_drop, chance, or both")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise ConfigError(
                f"max_drop is how much the quality may fall: a number >= 0, not {self.max_drop}"
            )
        if self.chance is not None and not 0 <= self.chance < 1:
            raise ConfigError(
                f"chance is the quality of guessing: a share in [0, 1), not {self.chance}"
            )
        if self.samples < 1:
            raise ConfigError(f"samples counts validation samples: at least 1, not {self.samples}")

    def at_chance(self, value: float) -> bool:
        """Return True if a quality is not significantly above that of guessing, or NaN."""
        return self.chance is not None and at_chance(value, self.chance, self.samples)

    def broken(self, value: float, dense: float) -> bool:
        """Return True if a quality is more than `max_drop` below the dense network's, or NaN."""
        # A tolerance for rounding: 0.9 - 0.88 is slightly more than 0.02.
        return self.max_drop is not None and not dense - value <= self.max_drop + 1e-9


def at_chance(value: float, chance: float, samples: int) -> bool:
    """Return True if an accuracy is within three standard errors above that of a guess, or NaN.

    Args:
        value: share of correctly classified samples.
        chance: the share for a random guess.
        samples: number of samples of the measurement.
    """
    return not value > chance + MARGIN * math.sqrt(chance * (1 - chance) / samples)

"""PWE: a plateau is reached after so many epochs without improvement."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from snello.errors import ConfigError

from ._state import Stateful


@dataclass
class Plateau(Stateful):
    """A schedule that counts bad epochs, whose loss does not improve on the best by the tolerance.

    Attributes:
        pwe: plateau waiting epochs; the plateau is reached after this many bad epochs in a row.
        tolerance: an improvement smaller than this share of the magnitude of the best loss does not
            count.
        best: the best loss so far.
        bad: bad epochs since then.

    Source: Tartaglione et al. (2021), section III-D.
    """

    pwe: int = 5
    tolerance: float = 0.01
    best: float = field(default=math.inf, kw_only=True)
    bad: int = field(default=0, kw_only=True)
    restores = True

    def __post_init__(self) -> None:
        if self.pwe < 1:
            raise ConfigError(f"pwe counts epochs to wait on a plateau: at least 1, not {self.pwe}")
        if not 0 <= self.tolerance < 1:
            raise ConfigError(
                f"tolerance is a share of the best loss: 0 <= tolerance < 1, not {self.tolerance}"
            )

    def update(self, loss: float) -> bool:
        """Count an epoch with this loss; return True if it is an improvement."""
        # Away from zero where the best loss is negative, such as a log-likelihood.
        share = math.copysign(self.tolerance, self.best)
        if loss < self.best * (1 - share):
            self.best, self.bad = loss, 0
            return True
        self.bad += 1
        return False

    @property
    def reached(self) -> bool:
        """Return True once enough bad epochs have passed."""
        return self.bad >= self.pwe

    @property
    def progress(self) -> float:
        """1: every plateau asks for the whole amount."""
        return 1.0

    @property
    def done(self) -> bool:
        """Always False: the pruner itself finishes when nothing more can be pruned."""
        return False

    def reset(self, loss: float) -> None:
        """Start counting again from this loss, which is that after a pruning step."""
        self.best, self.bad = loss, 0

"""The objective: a cost, with a penalty on the drop of accuracy beyond a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snello.errors import check_option


@dataclass(frozen=True)
class Measured:
    """A measurement of a trial, after some of its epochs or all.

    Attributes:
        cost: to be minimised.
        drop: accuracy of the reference minus that of the trial, in [-1, 1]; 0 without a reference.
    """

    cost: float
    drop: float = 0.0


@dataclass(frozen=True)
class Goal:
    """The lowest cost whose drop is within a bound, as one number to minimise.

    The penalty is exact (Nocedal & Wright, *Numerical Optimization*, 2006, section 17.2): if it is
    larger than the cost that a unit of drop can save, the minimum holds the bound. It is added at
    every rung, so that a pruner stops trials that are cheap only because they are inaccurate.

    Attributes:
        max_drop: largest drop, at least 0: 0.01 is one point of accuracy.
        penalty: cost per unit of drop beyond the bound; with 10, one point of accuracy adds 0.1.
    """

    max_drop: float = 0.01
    penalty: float = 10.0

    def __post_init__(self) -> None:
        check_option(
            math.isfinite(self.max_drop) and 0 <= self.max_drop < 1,
            f"the largest drop (--max-drop) must be in [0, 1), not {self.max_drop}: 0.01 is one point",
        )
        check_option(
            math.isfinite(self.penalty) and self.penalty > 0,
            f"the penalty (--penalty) must be positive, not {self.penalty}",
        )

    def value(self, measured: Measured) -> float:
        """`cost + penalty * max(0, drop - max_drop)`."""
        return measured.cost + self.penalty * max(0.0, measured.drop - self.max_drop)

    def holds(self, measured: Measured) -> bool:
        """Return True if the drop is within the bound."""
        return measured.drop <= self.max_drop

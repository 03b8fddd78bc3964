"""Results of a tuning."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snello.search.tune import Goal


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: of the trial; 0 has the recipe's own values.
        state: "complete", "pruned", "diverged" or "unfinished".
        values: name of a setting -> value.
        value: penalised cost; None before the first report and for a front.
        cost, drop, accuracy: after the last epoch, on validation images; None if not complete.
        epochs: number of epochs that were trained.
        seconds: wall-clock time of the training.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    value: float | None
    cost: float | None
    drop: float | None
    accuracy: float | None
    epochs: int
    seconds: float


@dataclass(frozen=True)
class FinalRow:
    """One training with all epochs and images, with a seed that the search did not use.

    Attributes:
        name: "dense" (the baseline), "recipe" (its own values) or "tuned" (those of the winner).
        seed: of the training and of the validation split.
        test_accuracy: in [0, 1].
        cost: after the last epoch; the test error if the cost is the error.
        value: cost, penalised by the drop against the dense network of the same seed, on test
            images.
    """

    name: str
    seed: int
    test_accuracy: float
    cost: float
    value: float


@dataclass(frozen=True)
class Tuned:
    """A tuning.

    Attributes:
        method: name of the training method.
        cost: name of the cost.
        goal: bound and penalty.
        reference: validation accuracy of the dense network that drops refer to; None for "error".
        trials: all trials.
        front: numbers of the trials on the front of cost and drop, by cost.
        winner: number of the best trial; None if none is complete.
        holds: True if its drop is within the bound.
        importances: name of a setting -> share of the variation of the objective, from Optuna's
            PED-ANOVA; empty with too few trials.
        finals: final trainings.
        recipe: file with the winner's recipe; None without a winner.
        waiting: True if other processes still work on the study: the last of them writes the winner.
        seconds: wall-clock time of this call.
    """

    method: str
    cost: str
    goal: Goal
    reference: float | None
    trials: tuple[TrialRow, ...]
    front: tuple[int, ...]
    winner: int | None
    holds: bool
    importances: Mapping[str, float]
    finals: tuple[FinalRow, ...]
    recipe: str | None
    waiting: bool
    seconds: float

    @property
    def epochs(self) -> int:
        """Number of epochs that all trials trained: the budget of the search."""
        return sum(trial.epochs for trial in self.trials)

    def verdict(self) -> str:
        """Comparison of the winner with the recipe's own values: a sentence.

        One is called better if its penalised cost is lower with every seed.
        """
        pairs = self._pairs()
        if not pairs:
            return "The winner was not trained with other seeds."
        ahead = sum(tuned < own for own, tuned in pairs)
        equal = sum(tuned == own for own, tuned in pairs)
        mean = statistics.mean(tuned - own for own, tuned in pairs)
        told = f"mean difference of the penalised cost {mean:+.4f}, lower with {ahead} of {len(pairs)} seeds"
        if equal == len(pairs):
            return "The winner has the recipe's own values: no trial was better."
        if ahead == len(pairs):
            return f"The winner beats the recipe's own values ({told})."
        if ahead + equal == 0:
            return f"The winner does not beat the recipe's own values: it is worse ({told})."
        return f"The winner does not clearly beat the recipe's own values ({told})."

    def _pairs(self) -> list[tuple[float, float]]:
        own = {row.seed: row.value for row in self.finals if row.name == "recipe"}
        return [(own[row.seed], row.value) for row in self.finals if row.name == "tuned"]

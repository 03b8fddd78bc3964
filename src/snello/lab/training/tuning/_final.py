"""Final trainings: the dense network, the recipe's own values and the winner, with other seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snello.lab.recipes import Recipe
from snello.lab.training._result import TrainingResult
from snello.search.tune import Measured

from ._costs import COSTS
from ._result import FinalRow
from ._settings import TuneSettings
from ._shared import trained
from ._space import with_values


@dataclass(frozen=True)
class Finals:
    """Final trainings in a folder, of which finished ones are not repeated.

    Attributes:
        recipe: with all epochs and images.
        settings: of the tuning.
        folder: each training has a folder in it.
        say: called with a line of text after each training.
    """

    recipe: Recipe
    settings: TuneSettings
    folder: Path
    say: Callable[[str], object]

    def rows(self, number: int, values: Mapping[str, Any]) -> tuple[FinalRow, ...]:
        """Train with every seed.

        Args:
            number: of the winning trial; trial 0 has the recipe's own values.
            values: of the winner.
        """
        first = self.recipe.seed + 1
        found: list[FinalRow] = []
        for seed in range(first, first + self.settings.seeds):
            found += self._of_seed(replace(self.recipe, seed=seed), number, values)
        return tuple(found)

    def _of_seed(self, recipe: Recipe, number: int, values: Mapping[str, Any]) -> list[FinalRow]:
        method, bounded = self.settings.method, self.settings.cost != "error"
        dense = self._train("dense", "baseline", recipe) if bounded else None
        own = self._train("recipe", method, recipe)
        winner = with_values(recipe, values)
        tuned = own if winner == recipe else self._train(f"trial-{number:04}", method, winner)
        rows = {"dense": dense, "recipe": own, "tuned": tuned}
        return [
            self._row(name, recipe.seed, result, dense) for name, result in rows.items() if result
        ]

    def _train(self, name: str, method: str, recipe: Recipe) -> TrainingResult:
        result = trained(recipe, method, self.folder / f"{name}-seed{recipe.seed}")
        self.say(f"{name}, seed {recipe.seed}: test accuracy {result.test_accuracy:.4f}")
        return result

    def _row(
        self, name: str, seed: int, result: TrainingResult, dense: TrainingResult | None
    ) -> FinalRow:
        accuracy = result.test_accuracy
        cost = 1 - accuracy if dense is None else COSTS[self.settings.cost](result.epochs)
        drop = 0.0 if dense is None else dense.test_accuracy - accuracy
        value = self.settings.goal.value(Measured(cost, drop))
        return FinalRow(name, seed, accuracy, cost, value)

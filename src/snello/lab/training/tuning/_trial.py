"""One trial: a training that reports each epoch and stops when the study says so."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import optuna

from snello.errors import DivergenceError
from snello.lab.datasets import Splits
from snello.lab.recipes import Recipe
from snello.lab.training._fit import train
from snello.lab.training._history import EpochRecord, History
from snello.lab.training._result import CHECKPOINT, MODEL
from snello.search.tune import Attempt, Measured

from ._costs import COSTS
from ._space import with_values


@dataclass(frozen=True)
class Trials:
    """The objective of a study: trains a recipe with the values of a trial.

    Attributes:
        recipe: of the trials.
        method: to train with.
        cost: one of `COSTS`.
        reference: validation accuracy of the dense network after each epoch; None: no drop.
        splits: the data.
        folder: of the trials, each in a folder of its own.
    """

    recipe: Recipe
    method: str
    cost: str
    reference: Sequence[float] | None
    splits: Splits
    folder: Path

    def __call__(self, attempt: Attempt) -> Measured:
        """Train one trial, or the rest of it.

        Raises:
            optuna.TrialPruned, OutOfTime, DivergenceError: from the study and the training.
        """
        place = self.folder / f"{attempt.number:04}"
        recipe = with_values(self.recipe, attempt.values)
        try:
            result = train(
                recipe, self.method, place, splits=self.splits, resume=True,
                callbacks=[_Reporter(self, attempt)],
            )  # fmt: skip
        except (optuna.TrialPruned, DivergenceError):
            shutil.rmtree(place, ignore_errors=True)
            raise
        self.note(attempt, result.epochs)
        # A winner is trained again: of a trial, its metrics are enough.
        for name in (CHECKPOINT, MODEL):
            (place / name).unlink(missing_ok=True)
        return self.measured(result.epochs)

    def measured(self, epochs: Sequence[EpochRecord]) -> Measured:
        """Cost and drop after some epochs; the drop against the dense network after as many."""
        cost = COSTS[self.cost](epochs)
        if self.reference is None:
            return Measured(cost)
        return Measured(cost, self.reference[len(epochs) - 1] - epochs[-1].val_accuracy)

    def note(self, attempt: Attempt, epochs: Sequence[EpochRecord]) -> None:
        """Keep the length of a training with its trial."""
        attempt.note(
            epochs=len(epochs), accuracy=epochs[-1].val_accuracy,
            seconds=sum(epoch.seconds for epoch in epochs),
        )  # fmt: skip


class _Reporter(L.Callback):
    """Report each epoch to the study, and ask it before the next one, when the last is saved."""

    def __init__(self, trials: Trials, attempt: Attempt) -> None:
        self._trials, self._attempt = trials, attempt

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch, which `History` has recorded before."""
        epochs = _records(trainer)
        self._attempt.report(len(epochs), self._trials.measured(epochs))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the training if the trial is pruned or the time is over."""
        if not trainer.current_epoch:
            return
        try:
            self._attempt.proceed()
        except optuna.TrialPruned:
            self._trials.note(self._attempt, _records(trainer))
            raise


def _records(trainer: L.Trainer) -> list[EpochRecord]:
    return next(c for c in trainer.callbacks if isinstance(c, History)).records  # type: ignore[attr-defined]

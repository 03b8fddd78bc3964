"""The curve of accuracy against sparsity from one training with a rising lambda."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L

from snello.errors import ConfigError
from snello.integrations.lightning import SensitivityPruning
from snello.lab.methods import method_of
from snello.lab.recipes import Recipe
from snello.lab.training._fit import train, validate

from ._shared import check_one_process
from ._space import range_of

TWT = 0.05
"""Largest relative increase of the validation loss by one pruning step of a ramp."""


@dataclass(frozen=True)
class RampPoint:
    """One epoch of a ramp.

    Attributes:
        epoch: counted from 1.
        lmbda: strength of the decay during it; 0 in the plain first third.
        pruned: share of the parameters at zero after it.
        accuracy: validation accuracy after it.
    """

    epoch: int
    lmbda: float
    pruned: float
    accuracy: float


@dataclass(frozen=True)
class RampResult:
    """A ramp.

    Attributes:
        method: name of the training method.
        points: one per epoch.
        test_accuracy: of the last, sparsest network.
        seconds: wall-clock time of the training.
    """

    method: str
    points: tuple[RampPoint, ...]
    test_accuracy: float
    seconds: float


def ramp(
    recipe: Recipe,
    folder: str | Path,
    *,
    method: str = "lobster",
    declared: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> RampResult:
    """Train once with a lambda that rises geometrically from epoch to epoch.

    The first third of the epochs is plain training. After it the network is pruned after every epoch but
    the last, each time within a bound on the loss of at most `TWT`, so that its sparsity rises in small
    steps: every epoch is a point of the curve. The points are a guide to the range of lambda, not
    results: networks trained with a constant lambda and fine-tuned are better. A ramp in the folder that
    was stopped goes on.

    Args:
        recipe: of the training.
        folder: of the training.
        method: one with a sensitivity, such as "lobster" or "serene".
        declared: ranges by dotted name, whose `lmbda` are the first and the last lambda; None: the
            default range of the method.
        progress: called with a line of text after each epoch.

    Raises:
        ConfigError: for a method without a sensitivity, or a wrong range.
        SnelloError: for errors of the data, the model and the training.
    """
    check_one_process("ramp")
    block = method_of(method).block
    if block is None:
        raise ConfigError(
            f"--ramp needs a method with a sensitivity, such as --method=lobster, not {method!r}"
        )
    within = range_of(recipe, method, f"{block}.lmbda", declared)
    given = recipe.pruning(method_of(method))
    # A patience that no plateau exceeds: the ramp alone decides when to prune.
    options = replace(
        given, lmbda=within.low, twt=min(given.twt, TWT), pwe=recipe.epochs,
        finetune=min(1, recipe.epochs - 1),
    )  # fmt: skip
    steep = replace(recipe, **{block: options}, methods=(method,))  # type: ignore[arg-type]
    place = Path(folder) / f"ramp-{within.low:g}-{within.high:g}"
    rise = _Rise(within.low, within.high, recipe.epochs)
    result = train(
        steep, method, place, splits=validate(steep), resume=True, progress=progress, callbacks=[rise]
    )  # fmt: skip
    points = tuple(
        RampPoint(e.epoch, rise.at(e.epoch), e.pruned, e.val_accuracy) for e in result.epochs
    )
    return RampResult(method, points, result.test_accuracy, result.seconds)


class _Rise(L.Callback):
    """Set the decay of a sensitivity at the start of each epoch, and prune at its end."""

    def __init__(self, low: float, high: float, epochs: int) -> None:
        self._low, self._high, self._epochs = low, high, epochs
        self._plain = epochs // 3

    def at(self, epoch: int) -> float:
        """Lambda during an epoch, counted from 1."""
        if epoch <= self._plain:
            return 0.0
        share = (epoch - self._plain - 1) / max(1, self._epochs - self._plain - 1)
        return float(self._low * (self._high / self._low) ** share)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set lambda; the sensitivity exists since the start of the training."""
        pruning = _pruning(trainer)
        assert pruning.sensitivity is not None
        pruning.sensitivity.lmbda = self.at(trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune after an epoch of the ramp; after the last but one, the callback does so itself."""
        epoch = trainer.current_epoch + 1
        pruning = _pruning(trainer)
        assert pruning.pruner is not None
        if max(1, self._plain) <= epoch < self._epochs - 1:
            pruning.pruner.prune()


def _pruning(trainer: L.Trainer) -> SensitivityPruning:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next(c for c in callbacks if isinstance(c, SensitivityPruning))

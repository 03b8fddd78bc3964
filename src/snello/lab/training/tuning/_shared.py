"""Trainings that several processes want: one trains, the others read its result."""

from __future__ import annotations

from pathlib import Path

import filelock

from snello.errors import ConfigError
from snello.lab.datasets import Splits
from snello.lab.recipes import Recipe
from snello.lab.training._distributed import world
from snello.lab.training._fit import train
from snello.lab.training._folder import check_finished_run
from snello.lab.training._result import CHECKPOINT, RESULT, TrainingResult

WINNER = "winner.yaml"
"""The recipe with the values that were found."""


def check_one_process(name: str) -> None:
    """Refuse to run under torchrun.

    Raises:
        ConfigError: if there are several processes.
    """
    if world().size > 1:
        raise ConfigError(
            f"{name} trains each network in one process: start it without torchrun; for several "
            "workers, start snello tune as often in the same folder, or with the same --storage"
        )


def trained(
    recipe: Recipe, method: str, folder: Path, splits: Splits | None = None
) -> TrainingResult:
    """Train in a folder, continue what is there, or wait for the process that trains there.

    The checkpoint of a finished training is removed.

    Raises:
        ConfigError: if the folder holds a training with other settings.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f"{folder.name}.lock"):
        if (folder / RESULT).is_file() and not (folder / CHECKPOINT).is_file():
            check_finished_run(folder, recipe, method)
            return TrainingResult.read(folder / RESULT)
        result = train(recipe, method, folder, splits=splits, resume=True)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return result

"""Loggers of Lightning that receive the figures of each epoch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from snello.errors import require
from snello.lab.recipes import Recipe

PROJECT = "snello"
"""Name of the project (W&B) and of the experiment (MLflow) that runs appear in."""


def check_loggers(names: Collection[str]) -> None:
    """Raise an error if the package of a logger is missing.

    Raises:
        MissingExtraError: naming its extra.
    """
    if "tensorboard" in names:
        require("tensorboard", "tensorboard", "logging for TensorBoard")
    if "wandb" in names:
        require("wandb", "wandb", "logging to Weights & Biases")
    if "mlflow" in names:
        require("mlflow", "mlflow", "logging to MLflow")


def loggers(recipe: Recipe, method: str, folder: Path) -> list[Any]:
    """The loggers that a recipe names; they write below `folder`.

    W&B and MLflow follow their own environment variables: `WANDB_MODE=offline`, `WANDB_PROJECT`,
    `MLFLOW_TRACKING_URI`.

    Args:
        recipe: the settings, which the loggers show.
        method: the training method, part of the run's name.
        folder: folder of the run.

    Raises:
        MissingExtraError: naming the extra of a logger whose package is not installed.
    """
    check_loggers(recipe.log)
    if recipe.log:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    found = [_KINDS[name](f"{recipe.data.name}-{method}", folder / "logs") for name in recipe.log]
    for logger in found:
        logger.log_hyperparams({**asdict(recipe), "method": method})
    return found


# CSV and TensorBoard number their versions, so that a resumed run keeps the logs of earlier attempts.


def _csv(name: str, folder: Path) -> CSVLogger:
    return CSVLogger(folder, name="csv")


def _tensorboard(name: str, folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="tensorboard")


def _wandb(name: str, folder: Path) -> WandbLogger:
    return WandbLogger(name, folder, project=os.environ.get("WANDB_PROJECT", PROJECT))


def _mlflow(name: str, folder: Path) -> MLFlowLogger:
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # hints at its start
    place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    return MLFlowLogger(PROJECT, name, place)


_KINDS: dict[str, Callable[[str, Path], Any]] = {
    "csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow,
}  # fmt: skip

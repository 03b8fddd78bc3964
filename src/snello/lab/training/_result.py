"""Results of a finished run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from snello.errors import ModelError

from ._history import EpochRecord

NOTE, CHECKPOINT, MODEL, RESULT = "recipe.json", "last.ckpt", "model.pt", "result.json"
"""The files of a run's folder: what was asked for, the last finished epoch, the network and its figures."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        method: what it was trained with.
        model: the model file, in the run's folder.
        test_accuracy, test_loss: of the last epoch's weights, in float32; for segmentation the
            first is the mean intersection over union.
        epochs: one record each.
        seconds: wall-clock time of training, over all its attempts if it was resumed.
        device, threads, precision: where and how it ran.
        processes: how many processes shared every batch.
        flag: "at chance" or "beyond max_drop", where the network is no better than a guess or has
            lost more than the recipe allows; else empty.
    """

    method: str
    model: str
    test_accuracy: float
    test_loss: float
    epochs: tuple[EpochRecord, ...]
    seconds: float
    device: str
    threads: int
    precision: str
    processes: int = 1
    flag: str = ""

    @staticmethod
    def read(path: Path) -> TrainingResult:
        """From the JSON file of a finished run.

        Raises:
            ModelError: if the file is damaged.
        """
        try:
            data = json.loads(path.read_text())
            return TrainingResult(
                **{**data, "epochs": tuple(EpochRecord(**e) for e in data["epochs"])}
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{path} is damaged: remove it to train the last epochs again"
            ) from error

"""Results of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from snello.errors import ModelError
from snello.files import read_json_object

from ._distributions import Distribution
from ._history import EpochRecord

NOTE, CHECKPOINT, MODEL, RESULT = "recipe.json", "last.ckpt", "model.pt", "result.json"
"""Files of a run's folder: settings, last checkpoint, trained network and its metrics."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        method: name of the training method.
        model: path of the model file, in the run's folder.
        test_accuracy, test_loss: results of the last epoch's weights in float32; for segmentation
            `test_accuracy` is the mean intersection over union.
        epochs: one record per epoch.
        seconds: wall-clock time of training, summed over resumed attempts.
        device, threads, precision: device, number of CPU threads and precision of the training.
        processes: number of processes that shared every batch.
        distributions: "sensitivity" (of the last step) and "velocity" (of the last probing), where
            the method has them.
        flag: "at chance" if the network is no better than guessing, "beyond max_drop" if it lost
            more accuracy than the recipe allows; else empty.
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
    distributions: Mapping[str, Distribution] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> TrainingResult:
        """Read the JSON file of a finished run.

        Raises:
            ModelError: if the file is damaged.
        """
        remedy = "remove it to train the last epochs again"
        data = read_json_object(path, remedy, ModelError)
        try:
            epochs = tuple(EpochRecord(**epoch) for epoch in data["epochs"])
            distributions = {
                name: Distribution(tuple(d["edges"]), tuple(d["counts"]), d["zeros"])
                for name, d in data.get("distributions", {}).items()
            }
            return TrainingResult(**{**data, "epochs": epochs, "distributions": distributions})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path} is damaged: {remedy}") from error

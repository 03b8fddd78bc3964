"""The samples that a static selection keeps, as a file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from snello.errors import DataError
from snello.files import read_json_object, write_text

FORMAT = "snello-kept-samples"
VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class Kept:
    """Samples to train on, and what it cost to find them.

    Attributes:
        indices: int64 `(K,)`, each once.
        samples: length of the dataset that they were chosen from.
        method: name of the selection.
        ratio: share that was to be left out.
        seed: of its draws.
        seconds: wall-clock time of scoring: what the training must save before anything is saved.
        presentations: samples trained on while scoring, over all epochs.
        labels: hash of the labels of all samples, by which `check` tells the dataset from another
            of the same length, such as other validation images leave; "" if not known.

    Raises:
        DataError: for indices outside the dataset, given twice, or none.
    """

    indices: Tensor
    samples: int
    method: str
    ratio: float
    seed: int = 0
    seconds: float = 0.0
    presentations: int = 0
    labels: str = ""

    def __post_init__(self) -> None:
        indices = self.indices
        if indices.dtype != torch.int64 or indices.dim() != 1 or not len(indices):
            raise DataError(
                f"indices must be int64 of shape (K,), K ≥ 1, not {indices.dtype} of {tuple(indices.shape)}"
            )
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.samples:
            raise DataError(
                f"indices {low} … {high} do not fit a dataset of {self.samples} samples"
            )
        if len(torch.unique(indices)) < len(indices):
            raise DataError("an index is given twice: every sample is kept once or not at all")

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return (
            f"Kept({len(self)} of {self.samples} samples, {self.method}, scored in {self.seconds:.1f} s, "
            f"{self.presentations} presentations)"
        )

    def of(self, dataset: Dataset[Any]) -> Subset[Any]:
        """The samples of a dataset, as torch's `Subset`.

        Raises:
            DataError: for a dataset of another length.
        """
        self.check(len(dataset))  # type: ignore[arg-type]
        return Subset(dataset, self.indices.tolist())

    def check(self, samples: int, labels: Tensor | None = None) -> None:
        """Check that a dataset is the one that the samples were chosen from.

        Args:
            samples: its length.
            labels: of all its samples, `(N,)`; None: not compared.

        Raises:
            DataError: for another length, or other labels.
        """
        if samples != self.samples:
            raise DataError(
                f"the indices were chosen from {self.samples} samples, the dataset has {samples}: use the dataset "
                "(and split) that was scored"
            )
        if labels is not None and self.labels and self.labels != digest(labels):
            raise DataError(
                f"the indices were chosen from {self.samples} samples with other labels: they would be of other "
                "samples here: use the dataset that was scored, with the same share and seed of the validation part"
            )

    def save(self, path: str | Path) -> Path:
        """Write a JSON file; a file that is there is replaced when the new one is whole.

        Raises:
            OutputError: naming the path and the reason.
        """
        fields = {**vars(self), "indices": self.indices.tolist()}
        return write_text(path, json.dumps({"format": FORMAT, "version": VERSION, **fields}))

    @classmethod
    def load(cls, path: str | Path) -> Kept:
        """Read the file of `save`.

        Raises:
            DataError: if it is missing, damaged, or of another kind.
        """
        found = read_json_object(path, "write the file again", DataError)
        if found.get("format") != FORMAT:
            raise DataError(f"{path} is no file of kept samples: {FORMAT!r} is not its format")
        if found.get("version") != VERSION:
            raise DataError(f"{path} has version {found.get('version')}, known is {VERSION}")
        return cls(**_fields(found, path))


_TYPES: dict[str, type | tuple[type, ...]] = {
    "indices": list, "samples": int, "method": str, "ratio": (int, float), "seed": int,
    "seconds": (int, float), "presentations": int, "labels": str,
}  # fmt: skip


def digest(labels: Tensor) -> str:
    """A short text that differs where the labels of a dataset differ, `(N,)`."""
    return hashlib.sha256(str(labels.tolist()).encode()).hexdigest()[:16]


def _fields(found: dict[str, Any], path: str | Path) -> dict[str, Any]:
    found = {"labels": "", **found}  # files of before there was a digest
    for name, kind in _TYPES.items():
        if not isinstance(found.get(name), kind) or isinstance(found.get(name), bool):
            raise DataError(f"{path}: {name} is missing or of the wrong type; write the file again")
    if not all(type(index) is int and abs(index) < 2**62 for index in found["indices"]):
        raise DataError(f"{path}: indices must be integers; write the file again")
    fields = {name: found[name] for name in _TYPES}
    return {**fields, "indices": torch.tensor(found["indices"], dtype=torch.int64)}

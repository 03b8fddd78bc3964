"""A kit and its models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["float32", "int8"]


@dataclass(frozen=True)
class KitModel:
    """One ONNX file of a kit.

    Attributes:
        name: of the model.
        file: within the folder.
        precision: of its weights and activations.
        bytes: size of the file.
        sha256: of the file.
        source: what it was made from.
        source_sha256: of that file; None where there was none.
        check: the file with inputs and outputs that the device compares with.
    """

    name: str
    file: str
    precision: Precision
    bytes: int
    sha256: str
    source: str
    source_sha256: str | None
    check: str


@dataclass(frozen=True)
class Kit:
    """A folder that times models on another device.

    Attributes:
        folder: what to copy.
        models: what is in it.
        random_calibration: whether int8 ranges were taken from random inputs: good for timing
            alone.
    """

    folder: Path
    models: tuple[KitModel, ...]
    random_calibration: bool

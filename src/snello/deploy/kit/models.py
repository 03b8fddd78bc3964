"""Dataclasses of a kit and its models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snello.deploy.operations.operation import Precision


@dataclass(frozen=True)
class KitModel:
    """One ONNX file of a kit.

    Attributes:
        name: name of the model.
        file: name of the file in the folder.
        precision: precision of weights and activations.
        bytes: size of the file.
        sha256: SHA-256 of the file.
        source: name of the file or model that it was exported from.
        source_sha256: SHA-256 of that file; None for a model without a file.
        check: file with inputs and reference outputs to compare with on the device.
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
        folder: path of the folder.
        models: its models.
        random_calibration: True if int8 ranges were calibrated on random inputs, which is valid for
            timing only.
    """

    folder: Path
    models: tuple[KitModel, ...]
    random_calibration: bool

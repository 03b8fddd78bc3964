"""Base class of model files; subclasses write and read without building the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from snello.codec import CodecSettings

Content = tuple[dict[str, Any], dict[str, Tensor]]
"""The record of a model and its weights."""


class ModelFile(ABC):
    """A file format for the record and the weights of a model.

    Attributes:
        suffix: suffix of its files.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Return True if the content of a file is of this format."""

    @abstractmethod
    def write(
        self,
        path: Path,
        record: Mapping[str, Any],
        state: Mapping[str, Tensor],
        settings: CodecSettings | None,
    ) -> Path:
        """Write a file; an existing one is replaced only when the new one is complete.

        Raises:
            ConfigError: for settings that do not apply to this format.
            OutputError: if the file cannot be written.
        """

    @abstractmethod
    def read(self, path: Path) -> Content:
        """Read the record and the weights.

        Raises:
            ModelError: if the file is damaged or of another kind.
            BitstreamError: if it is a damaged bitstream.
        """

    @abstractmethod
    def inspect(self, path: Path) -> dict[str, Any]:
        """Describe a file in plain values: format, bytes, record and tensors.

        Raises:
            ModelError: if the file is damaged or of another kind.
            BitstreamError: if it is a damaged bitstream.
        """


def row(name: str, value: Tensor) -> dict[str, Any]:
    """The description of a tensor that is stored as it is."""
    dtype = str(value.dtype).removeprefix("torch.")
    return {"name": name, "shape": tuple(value.shape), "dtype": dtype, "coding": "exact"}

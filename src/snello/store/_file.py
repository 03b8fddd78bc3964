"""The base class of model files, which are written and read without building the model."""

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
    """A kind of file with the record and the weights of a model.

    Attributes:
        suffix: ending of its files.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Tell by its content whether a file is of this kind."""

    @abstractmethod
    def write(
        self,
        path: Path,
        record: Mapping[str, Any],
        state: Mapping[str, Tensor],
        settings: CodecSettings | None,
    ) -> Path:
        """Write a file; the old one, if any, stays whole until the new one is.

        Raises:
            ConfigError: for settings that this kind has no use for.
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

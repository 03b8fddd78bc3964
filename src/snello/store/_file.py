"""Base class of model files; subclasses write and read without building the model."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from snello.codec import CodecSettings
from snello.errors import ConfigError, ModelError

from .record import summary

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


class ExactFile(ModelFile):
    """A format that stores the weights as they are.

    Attributes:
        format: name and version of the format, which its files hold.
    """

    format: ClassVar[str]

    def write(
        self,
        path: Path,
        record: Mapping[str, Any],
        state: Mapping[str, Tensor],
        settings: CodecSettings | None,
    ) -> Path:
        if settings is not None:
            raise ConfigError(
                f"codec settings apply to *.snello files only, and {path} would store the weights "
                "uncompressed: name the file *.snello, or omit the settings"
            )
        return self._write(path, json.dumps(record), state)

    @abstractmethod
    def _write(self, path: Path, record: str, state: Mapping[str, Tensor]) -> Path:
        """Write a file with the record as JSON text."""

    def inspect(self, path: Path) -> dict[str, Any]:
        record, state = self.read(path)
        size = sum(value.numel() * value.element_size() for value in state.values())
        return {
            "file": str(path),
            "format": self.format,
            "bytes": {"tensors": size, "total": path.stat().st_size},
            "record": summary(record),
            "tensors": [_row(name, value) for name, value in state.items()],
        }


def check_format(found: object, expected: str, path: Path) -> None:
    """Check the name of the format in a file.

    Raises:
        ModelError: for a file that another program, or a newer snello, wrote.
    """
    if found == expected:
        return
    if isinstance(found, str) and found.startswith("snello "):
        raise ModelError(
            f"{path} has the format {found[:40]!r}, and this snello reads {expected!r}: it was written by a newer "
            "one; install that"
        )
    raise ModelError(
        f"{path} is not a snello model file; if it is a state_dict, make one of it: snello simplify --model=NAME "
        f"--weights={path} --input-shape=3,32,32 --out=model.pt"
    )


def parsed(record: Any, path: Path) -> dict[str, Any]:
    """The record of a file, from its JSON text.

    Raises:
        ModelError: if it is damaged.
    """
    try:
        found = json.loads(record)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the record of the model is damaged: {error!r}") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path}: the record of the model is damaged: it is a {type(found).__name__}, not a mapping"
        )
    return found


def _row(name: str, value: Tensor) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"name": name, "shape": tuple(value.shape), "dtype": dtype, "coding": "exact"}

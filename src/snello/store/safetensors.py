"""The model file `.safetensors`: weights that other tools read, and the record as metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import ClassVar, final

from torch import Tensor

from snello.errors import ConfigError, MissingExtraError, ModelError, require
from snello.files import write_bytes

from ._file import Content, ExactFile, check_format, parsed

FORMAT = "snello safetensors 1"
_BLANK = "0" * 64
MOST_HEADER = 100_000_000
"""Bytes of the largest header that the format allows."""


@final
class Safetensors(ExactFile):
    """A file of Hugging Face's format safetensors, https://github.com/huggingface/safetensors.

    Its metadata has `format`, `record` (JSON text, the plan included) and `sha256`, the digest of
    the whole file with 64 zeros in the place of the digest. Tensors that share memory are stored once each.
    """

    suffix: ClassVar[str] = ".safetensors"
    format: ClassVar[str] = FORMAT

    def recognises(self, path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(9)
        return len(start) == 9 and start[8:] == b"{" and _header_bytes(start) <= MOST_HEADER

    def _write(self, path: Path, record: str, state: Mapping[str, Tensor]) -> Path:
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        metadata = {"format": FORMAT, "record": record, "sha256": _BLANK}
        library = _library()
        try:
            data = library.save(tensors, metadata)
        except Exception as error:  # the library raises errors of its own
            raise ConfigError(
                f"{path} is not written: safetensors cannot store these tensors: {error!r}; name the file *.pt"
            ) from error
        digest = _digest(data, _BLANK)
        return write_bytes(path, data.replace(_field(_BLANK), _field(digest), 1))

    def read(self, path: Path) -> Content:
        data = path.read_bytes()
        metadata = _metadata(data, path)
        check_format(metadata.get("format"), FORMAT, path)
        recorded = str(metadata.get("sha256"))
        if _digest(data, recorded) != recorded:
            raise ModelError(
                f"{path} is damaged: its digest does not fit its content; copy it again"
            )
        return parsed(metadata.get("record"), path), read_tensors(path, data)


def read_tensors(path: Path, data: bytes | None = None) -> dict[str, Tensor]:
    """The tensors of any safetensors file.

    Args:
        path: path of the file.
        data: its bytes, if they were read before.

    Raises:
        ModelError: if it is damaged.
        MissingExtraError: without safetensors.
    """
    try:
        tensors: dict[str, Tensor] = _library().load(path.read_bytes() if data is None else data)
    except MissingExtraError:
        raise
    except Exception as error:  # the library raises errors of its own
        raise ModelError(f"{path} is not a safetensors file, or damaged: {error}") from error
    return tensors


def _library() -> ModuleType:
    return require("safetensors.torch", "safetensors", "reading and writing .safetensors files")


def _header_bytes(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _field(digest: str) -> bytes:
    """The metadata of a digest as it is written, which escapes the quotes in other texts."""
    return f'"sha256":"{digest}"'.encode()


def _digest(data: bytes, recorded: str) -> str:
    """SHA-256 of a file with zeros in the place of the recorded digest."""
    # Blanked in the header alone, so that the tensors, which may be large, are not copied.
    end = 8 + _header_bytes(data)
    found = hashlib.sha256(data[:end].replace(_field(recorded), _field(_BLANK), 1))
    found.update(memoryview(data)[end:])
    return found.hexdigest()


def _metadata(data: bytes, path: Path) -> dict[str, str]:
    try:
        header = json.loads(data[8 : 8 + _header_bytes(data)])
        return dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: its header cannot be read") from error

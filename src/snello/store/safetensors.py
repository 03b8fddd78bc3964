"""The model file `.safetensors`: weights that other tools read, and the record as metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import ClassVar, final

from torch import Tensor

from snello.errors import MissingExtraError, ModelError, require
from snello.files import write_bytes

from ._file import Content, ExactFile, foreign

FORMAT = "snello safetensors 1"
MOST_HEADER = 100_000_000
"""Bytes of the largest header that the format allows."""


@final
class Safetensors(ExactFile):
    """A file of Hugging Face's format safetensors, https://github.com/huggingface/safetensors.

    Its metadata has `format`, `record` (JSON text, the plan included) and `sha256`, the digest
    of the bytes after the header. Tensors that share memory are stored once each.
    """

    suffix: ClassVar[str] = ".safetensors"
    format: ClassVar[str] = FORMAT

    def recognises(self, path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(9)
        return len(start) == 9 and start[8:] == b"{" and _header_bytes(start) <= MOST_HEADER

    def _write(self, path: Path, record: str, state: Mapping[str, Tensor]) -> Path:
        save = _library().save
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        digest = _digest(save(tensors))  # of what follows the header, which is to hold it
        return write_bytes(
            path, save(tensors, {"format": FORMAT, "record": record, "sha256": digest})
        )

    def read(self, path: Path) -> Content:
        data, library = path.read_bytes(), _library()
        metadata = _metadata(data, path)
        if metadata.get("format") != FORMAT:
            raise foreign(path)
        if _digest(data) != metadata.get("sha256"):
            raise ModelError(
                f"{path} is damaged: its digest does not fit its content; copy it again"
            )
        try:
            return json.loads(metadata["record"]), library.load(data)
        except Exception as error:  # the library raises errors of its own
            raise ModelError(f"{path}: the record of the model is damaged: {error!r}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file.

    Raises:
        ModelError: if it is damaged.
        MissingExtraError: without safetensors.
    """
    try:
        tensors: dict[str, Tensor] = _library().load(path.read_bytes())
    except MissingExtraError:
        raise
    except Exception as error:  # the library raises errors of its own
        raise ModelError(f"{path} is not a safetensors file, or damaged: {error}") from error
    return tensors


def _library() -> ModuleType:
    return require("safetensors.torch", "safetensors", "reading and writing .safetensors files")


def _header_bytes(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data[8 + _header_bytes(data) :]).hexdigest()


def _metadata(data: bytes, path: Path) -> dict[str, str]:
    try:
        header = json.loads(data[8 : 8 + _header_bytes(data)])
        return dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: its header cannot be read") from error

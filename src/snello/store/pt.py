"""The model file ``.pt``: a ``state_dict`` and a JSON record in a sealed archive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from snello.codec import CodecSettings
from snello.errors import ConfigError, ModelError

from . import archives
from ._file import Content, ModelFile
from .record import summary

FORMAT = "snello model 1"


@final
class Pt(ModelFile):
    """A file of ``torch.save`` with a digest of all bytes (:mod:`snello.store.archives`).

    ``torch.load(weights_only=True)`` reads it: ``format``, ``record`` (JSON) and ``state_dict``.
    """

    suffix: ClassVar[str] = ".pt"

    def recognises(self, path: Path) -> bool:
        return True  # reading says best what another file is

    def write(
        self,
        path: Path,
        record: Mapping[str, Any],
        state: Mapping[str, Tensor],
        settings: CodecSettings | None,
    ) -> Path:
        if settings is not None:
            raise ConfigError(
                f"settings of the codec are for *.snello files, and {path} would keep every weight as it is: name the "
                "file *.snello, or leave the settings out"
            )
        content = {"format": FORMAT, "record": json.dumps(record), "state_dict": dict(state)}
        return archives.save(path, content)

    def read(self, path: Path) -> Content:
        content = archives.load(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ModelError(
                f"{path} is no snello model file; to use weights alone, give --model NAME and --weights {path}"
            )
        try:
            data, state = json.loads(content["record"]), dict(content["state_dict"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: the record of the model is damaged: {error!r}") from error
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ModelError(f"{path}: the state_dict holds other things than tensors")
        return data, state

    def inspect(self, path: Path) -> dict[str, Any]:
        record, state = self.read(path)
        size = sum(value.numel() * value.element_size() for value in state.values())
        return {
            "file": str(path),
            "format": FORMAT,
            "bytes": {"tensors": size, "total": path.stat().st_size},
            "record": summary(record),
            "tensors": [_row(name, value) for name, value in state.items()],
        }


def _row(name: str, value: Tensor) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"name": name, "shape": tuple(value.shape), "dtype": dtype, "coding": "exact"}

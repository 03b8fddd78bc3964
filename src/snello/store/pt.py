"""The model file `.pt`: a `state_dict` and a JSON record in an archive with a digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from snello.codec import CodecSettings
from snello.errors import ConfigError, ModelError

from . import archives
from ._file import Content, ModelFile, row
from .record import summary

FORMAT = "snello model 1"


@final
class Pt(ModelFile):
    """A `torch.save` file with a digest of all bytes ([`snello.store.archives`][]).

    `torch.load(weights_only=True)` returns a dict of `format`, `record` (JSON text) and
    `state_dict`.
    """

    suffix: ClassVar[str] = ".pt"

    def recognises(self, path: Path) -> bool:
        return True  # the last kind to be tried: reading raises the clearest error for other files

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
        content = {"format": FORMAT, "record": json.dumps(record), "state_dict": dict(state)}
        return archives.save(path, content)

    def read(self, path: Path) -> Content:
        content = archives.load(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ModelError(
                f"{path} is not a snello model file; to load its weights, use --model NAME "
                f"--weights {path}"
            )
        try:
            data, state = json.loads(content["record"]), dict(content["state_dict"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: the record of the model is damaged: {error!r}") from error
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ModelError(f"{path}: the state_dict contains values that are not tensors")
        return data, state

    def inspect(self, path: Path) -> dict[str, Any]:
        record, state = self.read(path)
        size = sum(value.numel() * value.element_size() for value in state.values())
        return {
            "file": str(path),
            "format": FORMAT,
            "bytes": {"tensors": size, "total": path.stat().st_size},
            "record": summary(record),
            "tensors": [row(name, value) for name, value in state.items()],
        }

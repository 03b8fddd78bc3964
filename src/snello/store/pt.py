"""The model file `.pt`: a `state_dict` and a JSON record in an archive with a digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor

from snello.errors import ModelError

from . import archives
from ._file import Content, ExactFile, foreign

FORMAT = "snello model 1"


@final
class Pt(ExactFile):
    """A `torch.save` file with a digest of all bytes ([`snello.store.archives`][]).

    `torch.load(weights_only=True)` returns a dict of `format`, `record` (JSON text) and
    `state_dict`.
    """

    suffix: ClassVar[str] = ".pt"
    format: ClassVar[str] = FORMAT

    def recognises(self, path: Path) -> bool:
        return True  # the last kind to be tried: reading raises the clearest error for other files

    def _write(self, path: Path, record: str, state: Mapping[str, Tensor]) -> Path:
        content = {"format": FORMAT, "record": record, "state_dict": dict(state)}
        return archives.save(path, content)

    def read(self, path: Path) -> Content:
        content = archives.load(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise foreign(path)
        try:
            data, state = json.loads(content["record"]), dict(content["state_dict"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: the record of the model is damaged: {error!r}") from error
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ModelError(f"{path}: the state_dict contains values that are not tensors")
        return data, state

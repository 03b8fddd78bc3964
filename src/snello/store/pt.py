"""The model file `.pt`: a `state_dict` and a JSON record in an archive with a digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor

from snello.errors import ModelError

from . import archives
from ._file import Content, ExactFile, check_format, parsed

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
        check_format(content.get("format") if isinstance(content, dict) else None, FORMAT, path)
        state = content.get("state_dict")
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        ):
            raise ModelError(f"{path}: the state_dict contains values that are not tensors")
        return parsed(content.get("record"), path), dict(state)

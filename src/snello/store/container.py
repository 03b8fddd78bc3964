"""The bitstream `.snello`: weights coded with ISO/IEC 15938-17, and a JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from snello.codec import CodecSettings, compress, decompress, is_container, read_header
from snello.errors import BitstreamError, naming
from snello.files import write_bytes

from ._file import Content, ModelFile
from .record import summary

_PREFIX = 56  # bytes of a container before its manifest, see docs/format.md


@final
class Container(ModelFile):
    """A container as written by `snello.compress`; writing quantises the weights."""

    suffix: ClassVar[str] = ".snello"

    def recognises(self, path: Path) -> bool:
        return is_container(path)

    def write(
        self,
        path: Path,
        record: Mapping[str, Any],
        state: Mapping[str, Tensor],
        settings: CodecSettings | None,
    ) -> Path:
        data = compress(state, settings or CodecSettings(), record)
        return write_bytes(path, data)

    def read(self, path: Path) -> Content:
        with naming(str(path), BitstreamError):
            coded = decompress(path.read_bytes())
        return dict(coded.record), dict(coded.tensors)

    def inspect(self, path: Path) -> dict[str, Any]:
        # Reading only the header works without nncodec and is fast on any size.
        with naming(str(path), BitstreamError):
            header = read_header(path.read_bytes())
        return {
            "file": str(path),
            "format": f".snello {header.version}",
            "bytes": {
                "header": _PREFIX,
                "manifest": header.manifest_bytes,
                "stream": header.stream_bytes,
                "total": _PREFIX + header.manifest_bytes + header.stream_bytes,
            },
            "sha256": {
                "header and manifest": header.manifest_sha256,
                "stream": header.stream_sha256,
            },
            "settings": header.settings,
            "record": summary(header.record),
            "tensors": [
                {
                    "name": entry.name,
                    "shape": entry.shape,
                    "dtype": entry.dtype,
                    "coding": "NNC" if entry.coded else "exact",
                    "qp": entry.qp,
                    "step_size": entry.step_size,
                }
                for entry in header.tensors
            ],
        }

"""The manifest of a container: what is in it, as JSON. See docs/format.md."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from snello.codec._settings import CodecSettings
from snello.errors import BitstreamError, ConfigError

MAX_MANIFEST = 64 * 2**20
"""Cap on the manifest, in bytes of JSON: no header makes a reader allocate more than this."""

_NAMES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
    "int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
)
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES.split()}


@dataclass(frozen=True)
class TensorEntry:
    """One row of the tensor table.

    Attributes:
        name: the tensor's name.
        shape: its shape.
        dtype: its dtype, as in ``torch.<dtype>``.
        exact: None for a tensor in the NNC stream; otherwise its bytes, little-endian, row by row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    exact: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Header:
    """What a container says about itself, readable without nncodec.

    Attributes:
        version: version of the container format.
        record: the caller's record, as it was given to :func:`compress`.
        settings: how the tensors were coded.
        tensors: the tensor table, in the order of the tensors.
        manifest_bytes: size of the manifest in the file.
        stream_bytes: size of the NNC stream in the file.
    """

    version: int
    record: dict[str, Any]
    settings: CodecSettings
    tensors: tuple[TensorEntry, ...] = field(repr=False)
    manifest_bytes: int
    stream_bytes: int


def is_coded(tensor: Tensor) -> bool:
    """Whether a tensor goes into the NNC stream (a non-empty floating one) or is carried exactly."""
    return tensor.is_floating_point() and tensor.numel() > 0


def entry_of(name: str, tensor: Tensor) -> TensorEntry:
    """The row of a tensor.

    Raises:
        ConfigError: for a dtype that the format does not have, with the name.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        raise ConfigError(
            f"tensor {name!r} ({dtype}, {tensor.layout}, device {tensor.device}) cannot be compressed: "
            "dense real tensors with values can"
        )
    exact = None if is_coded(tensor) else exact_bytes(tensor)
    return TensorEntry(name, tuple(tensor.shape), dtype, exact)


def exact_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor, little-endian."""
    if sys.byteorder != "little":
        raise ConfigError("the container is written on little-endian machines only")
    raw = tensor.detach().cpu().contiguous().reshape(-1)
    return raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""


def exact_tensor(entry: TensorEntry) -> Tensor:
    """The inverse of :func:`exact_bytes`.

    Raises:
        BitstreamError: if the number of bytes does not fit the shape.
    """
    empty = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    data = entry.exact or b""
    if len(data) != empty.numel() * empty.element_size():
        raise BitstreamError(
            f"tensor {entry.name!r}: {len(data)} bytes do not fill the shape {entry.shape} of {entry.dtype}"
        )
    if not data:
        return empty
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(empty.dtype).reshape(entry.shape)


def write_manifest(
    entries: list[TensorEntry], record: Mapping[str, Any], settings: CodecSettings, stream_sha256: str
) -> bytes:
    """The manifest: JSON in UTF-8, deflated.

    Raises:
        ConfigError: if the record is not JSON, a name has no UTF-8 form, or the whole exceeds the cap.
    """
    if not isinstance(record, Mapping):
        raise ConfigError(f"record is a {type(record).__name__}; pass a mapping with string keys")
    manifest = {
        "record": dict(record),
        "settings": asdict(settings),
        "stream_sha256": stream_sha256,
        "tensors": [
            [e.name, list(e.shape), e.dtype, None if e.exact is None else e.exact.hex()] for e in entries
        ],
    }
    try:
        text = json.dumps(manifest, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            "utf-8"
        )
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise ConfigError(f"record and names must be JSON without NaN, in UTF-8: {error}") from error
    if len(text) > MAX_MANIFEST:
        raise ConfigError(
            f"the manifest has {len(text)} bytes, more than {MAX_MANIFEST}: integer tensors are carried in "
            "it exactly, so leave the large ones out, or shorten the record"
        )
    return zlib.compress(text, 9)


def read_manifest(data: bytes) -> tuple[dict[str, Any], CodecSettings, tuple[TensorEntry, ...], str]:
    """Record, settings, tensor table and SHA-256 of the stream.

    Raises:
        BitstreamError: if it is no manifest. (Damage is found before, by its digest.)
    """
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(data, MAX_MANIFEST)
        if not inflater.eof or inflater.unused_data:
            raise ValueError(f"it does not end where it says, or exceeds {MAX_MANIFEST} bytes")
        manifest = json.loads(text.decode("utf-8"))
        record, settings = manifest["record"], CodecSettings(**manifest["settings"])
        entries = tuple(_entry(*row) for row in manifest["tensors"])
        return _checked(record, dict), settings, entries, _checked(manifest["stream_sha256"], str)
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BitstreamError(f"the manifest cannot be read: {error}; write the file anew") from error


def _entry(name: str, shape: list[int], dtype: str, exact: str | None) -> TensorEntry:
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"tensor {name!r} has the shape {shape}")
    return TensorEntry(
        _checked(name, str), tuple(shape), dtype, None if exact is None else bytes.fromhex(exact)
    )


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value

"""The manifest of a container: its table of contents, as JSON (docs/format.md)."""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from snello.errors import BitstreamError, ConfigError, reason_of

from ._limits import Limits
from ._settings import MAX_DIMENSIONS, QP_MAX, QP_MIN, CodecSettings, step_size

MAX_MANIFEST = 64 * 2**20
"""Largest size of the manifest, in bytes of JSON: a reader never allocates more for a header."""

MAX_VALUES = 4_000_000
"""Largest number of commas, colons and brackets of the manifest: each takes about 70 bytes."""

# The writer never escapes \ud800 ... \udfff; a lone one makes a text that cannot be encoded.
_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")
_KEYS = {"record", "settings", "stream_sha256", "tensors"}
_SETTINGS = {
    1: {"qp", "nonweight_qp", "dependent_quantisation", "row_skipping"},
    2: {"qp", "nonweight_qp", "dependent_quantisation", "row_skipping", "codebook", "qp_of"},
}

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
        dtype: its dtype, as in `torch.<dtype>`.
        exact: None for a tensor in the NNC stream; otherwise its bytes, little-endian, row by row.
        qp: quantisation parameter of a tensor in the NNC stream; None in files of version 1, and
            for others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    exact: bytes | None = field(default=None, repr=False)
    qp: int | None = None

    @property
    def coded(self) -> bool:
        """True if the tensor is in the NNC stream; otherwise the manifest holds it exactly."""
        return self.exact is None

    @property
    def step_size(self) -> float | None:
        """The quantisation step size, if `qp` is known."""
        return None if self.qp is None else step_size(self.qp)

    @property
    def values(self) -> int:
        """The number of values."""
        return prod(self.shape)

    @property
    def stream_shape(self) -> tuple[int, ...]:
        """The shape in the stream, which has no tensors of zero dimensions."""
        return self.shape or (1,)


@dataclass(frozen=True)
class Header:
    """The header of a container, readable without nncodec.

    Attributes:
        version: version of the container format.
        record: the caller's record, as it was given to [`compress`][snello.codec.compress].
        settings: the coding options.
        tensors: the tensor table, in the order of the tensors.
        manifest_bytes: size of the manifest in the file.
        stream_bytes: size of the NNC stream in the file.
        manifest_sha256: SHA-256 of header and manifest, hexadecimal, as it stands in the file.
        stream_sha256: SHA-256 of the NNC stream, hexadecimal, as it stands in the manifest.
    """

    version: int
    record: dict[str, Any]
    settings: CodecSettings
    tensors: tuple[TensorEntry, ...] = field(repr=False)
    manifest_bytes: int
    stream_bytes: int
    manifest_sha256: str = field(repr=False)
    stream_sha256: str = field(repr=False)


def is_coded(tensor: Tensor) -> bool:
    """Return true for a tensor that goes into the NNC stream: floating and not empty."""
    return tensor.is_floating_point() and tensor.numel() > 0


def entry_of(name: str, tensor: Tensor) -> TensorEntry:
    """The table row of a tensor, without its quantisation parameter.

    Raises:
        ConfigError: for a dtype that the format does not have, with the name.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        raise ConfigError(
            f"tensor {name!r} ({dtype}, {tensor.layout}, device {tensor.device}) cannot be compressed: "
            "dense real tensors with values can"
        )
    if tensor.dim() > MAX_DIMENSIONS:
        raise ConfigError(
            f"tensor {name!r} has {tensor.dim()} dimensions; the format takes {MAX_DIMENSIONS}"
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
    """The inverse of `exact_bytes`."""
    # read_manifest has checked that the bytes fill the shape.
    if not entry.exact:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    data = torch.frombuffer(bytearray(entry.exact), dtype=torch.uint8)
    return data.view(DTYPES[entry.dtype]).reshape(entry.shape)


def write_manifest(
    entries: list[TensorEntry],
    record: Mapping[str, Any],
    settings: CodecSettings,
    stream_sha256: str,
) -> bytes:
    """Write the manifest: JSON in UTF-8, deflated.

    Raises:
        ConfigError: if the record is not JSON, a name has no UTF-8 form, or the whole exceeds the
            limits.
    """
    if not isinstance(record, Mapping):
        raise ConfigError(f"record is a {type(record).__name__}; pass a mapping with string keys")
    manifest = {
        "record": dict(record),
        "settings": settings.to_dict(),
        "stream_sha256": stream_sha256,
        "tensors": [
            [e.name, list(e.shape), e.dtype, e.qp, None if e.exact is None else e.exact.hex()]
            for e in entries
        ],
    }
    try:
        text = json.dumps(
            manifest, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise ConfigError(
            f"record and names must be JSON without NaN, in UTF-8: {error}"
        ) from error
    if len(text) > MAX_MANIFEST or _count_values(text) > MAX_VALUES:
        raise ConfigError(
            f"the manifest has {len(text)} bytes and {_count_values(text)} values, more than {MAX_MANIFEST} "
            f"or {MAX_VALUES}: integer tensors are carried in it exactly, so leave the large ones out, or "
            "shorten the record"
        )
    return zlib.compress(text, 9)


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest: the fields of `Header` that come from it."""

    record: dict[str, Any]
    settings: CodecSettings
    tensors: tuple[TensorEntry, ...]
    stream_sha256: str


def read_manifest(data: bytes, version: int, limits: Limits) -> Manifest:
    """Read a manifest. Its size is limited, and no tensor is allocated.

    Raises:
        BitstreamError: if it is not a manifest. (Damage was already detected by its digest.)
    """
    try:
        text = _inflate(data, min(MAX_MANIFEST, limits.manifest_bytes))
        if _count_values(text) > MAX_VALUES or _SURROGATE.search(text):
            raise ValueError(
                f"it has more than {MAX_VALUES} values, or texts that have no UTF-8 form"
            )
        return _parse(
            json.loads(text.decode("utf-8"), parse_constant=_refuse_constant), version, limits
        )
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BitstreamError(
            f"the manifest cannot be read: {reason_of(error)[:300]}; write the file again"
        ) from error


def _inflate(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, limit)
    if not inflater.eof or inflater.unused_data:
        raise ValueError(f"it does not end where it says, or exceeds {limit} bytes")
    return text


def _count_values(text: bytes) -> int:
    # An upper bound, found without parsing: texts may contain such characters too.
    return sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has the number {name}")


def _parse(manifest: Any, version: int, limits: Limits) -> Manifest:
    _check_keys("the manifest", _checked(manifest, dict), _KEYS)
    settings = _checked(manifest["settings"], dict)
    _check_keys("settings", settings, _SETTINGS[version])
    rows = _checked(manifest["tensors"], list)
    if len(rows) > limits.tensors:
        raise ValueError(f"it lists {len(rows)} tensors, more than the limit of {limits.tensors}")
    entries = tuple(_entry(version, *row) for row in rows)
    names = {entry.name for entry in entries}
    if len(names) < len(entries):
        raise ValueError(f"{len(entries)} tensors have {len(names)} names")
    return Manifest(
        _checked(manifest["record"], dict),
        CodecSettings(**settings),
        entries,
        _checked(manifest["stream_sha256"], str),
    )


def _check_keys(what: str, found: dict[str, Any], expected: set[str]) -> None:
    if odd := sorted(found.keys() ^ expected):
        raise ValueError(f"{what}: the key {odd[0]!r} is missing or unknown")


def _entry(version: int, name: str, shape: list[int], dtype: str, *rest: Any) -> TensorEntry:
    # Rows of version 1 have no quantisation parameter.
    qp, exact = rest if version > 1 else (None, *rest)
    if _checked(dtype, str) not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {dtype!r}")
    _check_shape(name, _checked(shape, list))
    entry = TensorEntry(
        _checked(name, str),
        tuple(shape),
        dtype,
        None if exact is None else bytes.fromhex(exact),
        qp,
    )
    _check_kind(entry, version)
    return entry


def _check_shape(name: str, shape: list[int]) -> None:
    good = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
    # Sizes and strides have to fit into 64 bits even if a dimension is zero.
    if not good or prod(n or 1 for n in shape) >= 2**60:
        raise ValueError(f"tensor {name!r} has the shape {str(shape)[:100]}")


def _check_kind(entry: TensorEntry, version: int) -> None:
    """Check that dtype, quantisation parameter and exact bytes of an entry are consistent."""
    dtype = DTYPES[entry.dtype]
    if entry.coded != (dtype.is_floating_point and entry.values > 0):
        raise ValueError(f"tensor {entry.name!r}: floating values are coded, and nothing else is")
    if not _fits(entry.qp, entry.coded and version > 1):
        raise ValueError(f"tensor {entry.name!r} has the quantisation parameter {entry.qp!r}")
    if entry.exact is None:
        return
    if len(entry.exact) != entry.values * dtype.itemsize:
        raise ValueError(
            f"tensor {entry.name!r}: {len(entry.exact)} bytes do not fill the shape {entry.shape} of {entry.dtype}"
        )
    if dtype is torch.bool and entry.exact.strip(b"\0\1"):
        raise ValueError(f"tensor {entry.name!r}: a bool is 0 or 1")


def _fits(qp: Any, wanted: bool) -> bool:
    return type(qp) is int and QP_MIN <= qp <= QP_MAX if wanted else qp is None


def check_sizes(entries: tuple[TensorEntry, ...], limits: Limits) -> None:
    """Raise an error if the tensors of a table exceed the limit on their bytes.

    Raises:
        BitstreamError: naming the largest tensor.
    """
    sizes = [entry.values * max(4, DTYPES[entry.dtype].itemsize) for entry in entries]
    if sum(sizes) > limits.decoded_bytes:
        largest = entries[sizes.index(max(sizes))]
        raise BitstreamError(
            f"the file claims {sum(sizes)} bytes of tensors ({largest.name[:80]!r} has the shape "
            f"{largest.shape}), more than the limit of {limits.decoded_bytes}; if that is what you expect, "
            "raise Limits.decoded_bytes"
        )


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:100]!r} is not a {kind.__name__}")
    return value

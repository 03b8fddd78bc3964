"""The ``.snello`` container: a manifest and a plain NNC stream, both protected. See docs/format.md."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from snello.codec._manifest import (
    DTYPES,
    MAX_MANIFEST,
    Header,
    TensorEntry,
    entry_of,
    exact_tensor,
    is_coded,
    read_manifest,
    write_manifest,
)
from snello.codec._settings import CodecSettings
from snello.codec._stream import decode, encode
from snello.errors import BitstreamError, ConfigError

MAGIC = b"\x89SNL\r\n\x1a\n"  # as PNG's: a transfer that drops the eighth bit or rewrites line ends shows
VERSION = 1
_FIXED = struct.Struct("<8sHHIQ")  # magic, version, reserved, manifest bytes, stream bytes
_PREFIX = _FIXED.size + 32  # and the SHA-256 of these and the manifest

_DEFAULTS = CodecSettings()
_NO_RECORD: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Decompressed:
    """The content of a container.

    Attributes:
        tensors: name -> tensor on the CPU, with the shape, dtype and order it was given with.
        record: the caller's record.
        settings: how the tensors were coded.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    record: dict[str, Any]
    settings: CodecSettings


def compress(
    tensors: Mapping[str, Tensor],
    settings: CodecSettings = _DEFAULTS,
    record: Mapping[str, Any] = _NO_RECORD,
) -> bytes:
    """Pack tensors into a ``.snello`` container. The same input gives the same bytes.

    Non-empty floating tensors go through NNC; integer, boolean and empty ones are carried exactly.

    Args:
        tensors: name -> tensor of any shape and real dtype, on any device.
        settings: how to code them.
        record: anything JSON can hold, handed back by :func:`decompress` (tuples as lists).

    Returns:
        The bytes of the container.

    Raises:
        ConfigError: for a NaN or an infinity, a tensor or name that the format does not have, each with its
            name; or a record that is not JSON.
        MissingExtraError: without nncodec.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(f"tensor {name!r}: pass strings and torch.Tensors, not {type(tensor).__name__}")
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    coded = {name: tensor for name, tensor in tensors.items() if is_coded(tensor)}
    stream = encode(coded, settings) if coded else b""
    manifest = write_manifest(entries, record, settings, hashlib.sha256(stream).hexdigest())
    fixed = _FIXED.pack(MAGIC, VERSION, 0, len(manifest), len(stream))
    return fixed + hashlib.sha256(fixed + manifest).digest() + manifest + stream


def decompress(data: bytes) -> Decompressed:
    """Unpack a container.

    Args:
        data: the bytes of :func:`compress`.

    Returns:
        Tensors, record and settings. Floating tensors have the values of :func:`quantised`, cast back to the
        dtype they came with; all others are exact.

    Raises:
        BitstreamError: for any truncation, any flipped bit, trailing bytes, or another kind of file.
        MissingExtraError: without nncodec, if there is a stream to decode.
    """
    header, stream = _open(data)
    decoded = decode(stream) if stream else {}
    listed = {entry.name for entry in header.tensors if entry.exact is None}
    if listed != set(decoded):
        odd = sorted(listed ^ set(decoded))
        raise BitstreamError(
            f"manifest and NNC stream disagree about the tensor {odd[0]!r}; write the file anew"
        )
    tensors = {entry.name: _restore(entry, decoded) for entry in header.tensors}
    return Decompressed(tensors, header.record, header.settings)


def read_header(data: bytes) -> Header:
    """Check a container and read what it says about itself; needs no codec.

    Raises:
        BitstreamError: as :func:`decompress`.
    """
    return _open(data)[0]


def _open(data: bytes) -> tuple[Header, bytes]:
    data = bytes(data)
    if not data.startswith(MAGIC):
        raise BitstreamError(
            f"not a .snello file: it opens with {data[:8]!r}, not {MAGIC!r} ({len(data)} bytes)"
        )
    if len(data) < _PREFIX:
        raise BitstreamError(f"truncated .snello file: {len(data)} bytes, the header alone has {_PREFIX}")
    _, version, reserved, manifest_bytes, stream_bytes = _FIXED.unpack_from(data)
    if version != VERSION or reserved:
        raise BitstreamError(
            f".snello format version {version} (reserved field {reserved}) is not {VERSION}: "
            "the file is damaged or was written by a newer snello"
        )
    _check_size(len(data), manifest_bytes, stream_bytes)
    manifest = data[_PREFIX : _PREFIX + manifest_bytes]
    stream = data[_PREFIX + manifest_bytes :]
    if hashlib.sha256(data[: _FIXED.size] + manifest).digest() != data[_FIXED.size : _PREFIX]:
        raise BitstreamError("damaged .snello file: the SHA-256 of header and manifest does not match")
    record, settings, entries, stream_sha256 = read_manifest(manifest)
    if hashlib.sha256(stream).hexdigest() != stream_sha256:
        raise BitstreamError("damaged .snello file: the SHA-256 of the NNC stream does not match")
    return Header(version, record, settings, entries, manifest_bytes, stream_bytes), stream


def _check_size(size: int, manifest_bytes: int, stream_bytes: int) -> None:
    expected = _PREFIX + manifest_bytes + stream_bytes
    if manifest_bytes > MAX_MANIFEST or expected != size:
        raise BitstreamError(
            f"truncated or damaged .snello file: it has {size} bytes, its header promises {expected} "
            f"(manifest {manifest_bytes}, at most {MAX_MANIFEST}; stream {stream_bytes})"
        )


def _restore(entry: TensorEntry, decoded: Mapping[str, Tensor]) -> Tensor:
    if entry.exact is not None:
        return exact_tensor(entry)
    values = decoded[entry.name]
    if values.numel() != prod(entry.shape):
        raise BitstreamError(
            f"tensor {entry.name!r}: the stream holds {values.numel()} values, the manifest says "
            f"{entry.shape}"
        )
    dtype = DTYPES[entry.dtype]
    # Quantisation may carry the largest values of a narrow dtype just beyond its range, to infinity.
    limit = min(torch.finfo(dtype).max, torch.finfo(values.dtype).max)
    return values.reshape(entry.shape).clamp(-limit, limit).to(dtype)

"""The `.snello` container: manifest and NNC stream, protected by digests (docs/format.md)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from snello.errors import BitstreamError, ConfigError

from ._limits import Limits, checked_input
from ._manifest import (
    DTYPES,
    MAX_MANIFEST,
    Header,
    TensorEntry,
    check_sizes,
    entry_of,
    exact_tensor,
    is_coded,
    read_manifest,
    write_manifest,
)
from ._settings import CodecSettings, check_names, check_settings
from ._stream import check_mapping, code_all, decode_each, join, prepared

MAGIC = b"\x89SNL\r\n\x1a\n"  # like PNG's: it reveals transfers that drop the eighth bit or rewrite line ends
VERSION = 2  # in version 1 there are no codebook and qp_of settings and no QP per tensor
_FIXED = struct.Struct("<8sHHIQ")  # magic, version, reserved, manifest bytes, stream bytes
_PREFIX = _FIXED.size + 32  # fixed fields, then the SHA-256 over them and the manifest

_DEFAULTS = CodecSettings()
_LIMITS = Limits()
_NO_RECORD: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Decompressed:
    """The content of a container.

    Attributes:
        tensors: name -> tensor on the CPU, with the shape, dtype and order of the input.
        record: the JSON that the caller stored with the tensors.
        settings: the coding options.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    record: dict[str, Any]
    settings: CodecSettings


def compress(
    tensors: Mapping[str, Tensor],
    settings: CodecSettings = _DEFAULTS,
    record: Mapping[str, Any] = _NO_RECORD,
) -> bytes:
    """Pack tensors into a `.snello` container. The same input gives the same bytes.

    Non-empty floating tensors are coded by NNC; integer, boolean and empty ones are stored exactly.

    Args:
        tensors: name -> tensor of any shape and real dtype, on any device.
        settings: the coding options.
        record: any JSON to store with the tensors ([`snello.save`][snello.store.save]: how to build
            the model); tuples come back as lists.

    Returns:
        The bytes of the container.

    Raises:
        ConfigError: for anything but a mapping; for a NaN or an infinity, a tensor or name that the
            format does not have, each with its name; if `settings.qp_of` names a tensor that is
            not coded; or for a record that is not JSON.
        MissingExtraError: without nncodec.
    """
    check_mapping(tensors, "compress")
    check_settings(settings)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(
                f"tensor {name!r}: pass strings and torch.Tensors, not {type(tensor).__name__}"
            )
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    coded = {name: tensor for name, tensor in tensors.items() if is_coded(tensor)}
    check_names(settings, coded)
    parts = code_all(prepared(coded, "compress"), settings)
    stream = join(parts) if parts else b""
    qps = {name: qp for name, (_, qp) in zip(coded, parts, strict=True)}
    entries = [replace(entry, qp=qps.get(entry.name)) for entry in entries]
    manifest = write_manifest(entries, record, settings, hashlib.sha256(stream).hexdigest())
    fixed = _FIXED.pack(MAGIC, VERSION, 0, len(manifest), len(stream))
    return fixed + hashlib.sha256(fixed + manifest).digest() + manifest + stream


def decompress(data: bytes, limits: Limits = _LIMITS, *, isolated: bool = True) -> Decompressed:
    """Unpack a container.

    The NNC stream is decoded in a child process whose time and memory are limited, so that a
    damaged or hostile file can only cause an error. Starting the child takes about 0.2 s.

    Args:
        data: the bytes of [`compress`][snello.codec.compress].
        limits: sizes, memory and time that decoding may take; see [`Limits`][snello.codec.Limits].
        isolated: False decodes in this process, which is faster for small files. Use it for trusted
            files only: of the limits, only those on sizes are then enforced.

    Returns:
        Tensors, record and settings. Floating tensors have the values of
        [`quantised`][snello.codec.quantised], cast to their original dtype; all others are exact.

    Raises:
        BitstreamError: for any truncation, any flipped bit, trailing bytes, or another kind of
            file; and for a file that cannot be decoded within the limits.
        ConfigError: if no child process can be started, and for anything but bytes.
        MissingExtraError: without nncodec, if there is a stream to decode.
    """
    header, stream = _parse(data, limits)
    check_sizes(header.tensors, limits)  # _parse limits the manifest; this, what it would allocate
    coded = {entry.name: entry for entry in header.tensors if entry.coded}
    decoded: dict[str, Tensor] = {}
    if coded:
        parts = decode_each(stream, limits, isolated)
        decoded = {entry.name: values for entry, values in _matched(list(coded.values()), parts)}
    if stream and not coded:
        raise BitstreamError(
            "the manifest lists no coded tensor, but there is an NNC stream; write the file again"
        )
    tensors = {  # pop: each float32 tensor is freed once it is cast
        entry.name: _cast(entry, decoded.pop(entry.name)) if entry.coded else exact_tensor(entry)
        for entry in header.tensors
    }
    return Decompressed(tensors, header.record, header.settings)


def is_container(path: str | Path) -> bool:
    """Return true for a file with a container's first four bytes.

    A file whose magic number was damaged after these bytes by a transfer in text mode is still
    recognised, and [`read_header`][snello.codec.read_header] raises the error.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(4) == MAGIC[:4]


def read_header(data: bytes, limits: Limits = _LIMITS) -> Header:
    """Check a container and read its header, without nncodec and without decoding.

    Raises:
        BitstreamError: as [`decompress`][snello.codec.decompress].
    """
    return _parse(data, limits)[0]


def stream_of(data: bytes, limits: Limits = _LIMITS) -> bytes:
    """The plain NNC stream inside a container, as [`encode`][snello.codec.encode] returns it.

    Raises:
        BitstreamError: as [`read_header`][snello.codec.read_header].
    """
    return _parse(data, limits)[1]


def _parse(data: bytes, limits: Limits) -> tuple[Header, bytes]:
    """Header and stream of a container, after every check that needs no decoding."""
    data = checked_input(data, limits)
    if not data.startswith(MAGIC):
        raise BitstreamError(
            f"not a .snello file: it opens with {data[:8]!r}, not {MAGIC!r} ({len(data)} bytes)"
        )
    if len(data) < _PREFIX:
        raise BitstreamError(
            f"truncated .snello file: {len(data)} bytes, the header alone has {_PREFIX}"
        )
    _, version, reserved, manifest_bytes, stream_bytes = _FIXED.unpack_from(data)
    if not 1 <= version <= VERSION or reserved:
        raise BitstreamError(
            f".snello format version {version} (reserved field {reserved}) is not one of 1 to {VERSION}: "
            "the file is damaged or was written by a newer snello"
        )
    _check_size(len(data), manifest_bytes, stream_bytes)
    manifest = data[_PREFIX : _PREFIX + manifest_bytes]
    stream = data[_PREFIX + manifest_bytes :]
    # This digest covers header and manifest; the manifest holds the digest of the stream.
    digest = hashlib.sha256(data[: _FIXED.size] + manifest)
    if digest.digest() != data[_FIXED.size : _PREFIX]:
        raise BitstreamError(
            "damaged .snello file: the SHA-256 of header and manifest does not match"
        )
    content = read_manifest(manifest, version, limits)
    if hashlib.sha256(stream).hexdigest() != content.stream_sha256:
        raise BitstreamError("damaged .snello file: the SHA-256 of the NNC stream does not match")
    header = Header(
        version, content.record, content.settings, content.tensors, manifest_bytes, stream_bytes,
        digest.hexdigest(), content.stream_sha256,
    )  # fmt: skip
    return header, stream


def _check_size(size: int, manifest_bytes: int, stream_bytes: int) -> None:
    expected = _PREFIX + manifest_bytes + stream_bytes
    if manifest_bytes > MAX_MANIFEST or expected != size:
        raise BitstreamError(
            f"truncated or damaged .snello file: it has {size} bytes, its header promises {expected} "
            f"(manifest {manifest_bytes}, at most {MAX_MANIFEST}; stream {stream_bytes})"
        )


def _matched(
    entries: list[TensorEntry], decoded: Iterator[tuple[str, int | None, Tensor]]
) -> Iterator[tuple[TensorEntry, Tensor]]:
    """Manifest entry and values of each decoded tensor.

    Raises:
        BitstreamError: at the first difference between stream and manifest.
    """
    expected = iter(entries)
    for name, qp, values in decoded:
        entry = next(expected, None)
        if entry is None or name != entry.name:
            raise _disagreement(name, "its name, or its place")
        if tuple(values.shape) != entry.stream_shape:
            raise _disagreement(name, f"its shape, {tuple(values.shape)} and {entry.stream_shape}")
        # Version 1 lists no QPs.
        if entry.qp is not None and qp != entry.qp:
            raise _disagreement(name, f"its quantisation parameter, {qp} and {entry.qp}")
        yield entry, values
    if (entry := next(expected, None)) is not None:
        raise _disagreement(entry.name, "whether it is there")


def _disagreement(name: str, what: str) -> BitstreamError:
    return BitstreamError(
        f"NNC stream and manifest differ for the tensor {name[:80]!r}: {what}; write the file again"
    )


def _cast(entry: TensorEntry, values: Tensor) -> Tensor:
    dtype = DTYPES[entry.dtype]
    # Quantisation may push the largest values of a narrow dtype beyond its range; for a wider
    # dtype the bound has to be finite in the dtype of the decoded values.
    limit = min(torch.finfo(dtype).max, torch.finfo(values.dtype).max)
    return values.reshape(entry.shape).clamp(-limit, limit).to(dtype)

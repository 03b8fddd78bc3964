"""The plain NNC stream, coded by the package nncodec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from snello.errors import BitstreamError, ConfigError

from . import _nncodec, _worker
from ._child import check_claims, decode_isolated
from ._limits import Limits, checked_input
from ._names import escape, unescape
from ._settings import (
    MAX_DIMENSIONS,
    CodecSettings,
    check_names,
    check_settings,
    quantisation_parameter,
    step_size,
)

_DEFAULTS = CodecSettings()
_LIMITS = Limits()

_HEADER_UNITS = 3
"""Units before the first tensor: start, model parameter set, topology."""


def encode(tensors: Mapping[str, Tensor], settings: CodecSettings = _DEFAULTS) -> bytes:
    """Code tensors as one NNC stream. The same input gives the same bytes.

    Args:
        tensors: name -> floating tensor of any shape with at least one element; float64, float16
            and bfloat16 are coded as float32. For integers and empty tensors use
            [`compress`][snello.codec.compress].
        settings: quantisation parameters and tools.

    Returns:
        The stream. It is the stream that nncodec writes for the same dictionary, byte for byte.

    Raises:
        ConfigError: for a NaN or an infinity, an integer, complex, empty or oversized tensor, or a
            name that cannot be written, each with the name; if `settings.qp_of` names a tensor
            that is not there; or if there is nothing to code.
        MissingExtraError: without nncodec.
    """
    check_settings(settings)
    ready = prepared(tensors, "encode")
    if not ready:
        raise ConfigError("encode: there is no tensor to code; pass at least one")
    check_names(settings, ready)
    return join(code_all(ready, settings))


def code_all(ready: Mapping[str, Tensor], settings: CodecSettings) -> list[tuple[bytes, int]]:
    """Code each tensor of `prepared` separately: its stream and quantisation parameter."""
    # Separately, because nncodec copies all tensors for each tensor: quadratic in the model's size.
    return [
        _code_one(index, name, tensor, settings)
        for index, (name, tensor) in enumerate(ready.items())
    ]


def join(parts: list[tuple[bytes, int]]) -> bytes:
    """Join the streams of single tensors."""
    # Each starts with the same three units, which the joined stream needs once.
    units = [list(_worker.split_units(stream)) for stream, _ in parts]
    header = b"".join(units[0][:_HEADER_UNITS])
    return header + b"".join(unit for part in units for unit in part[_HEADER_UNITS:])


def _code_one(index: int, name: str, tensor: Tensor, settings: CodecSettings) -> tuple[bytes, int]:
    qp = quantisation_parameter(name, tensor, settings)
    levels = _nncodec.quantise(escape(name), tensor.numpy(), index, qp, settings)
    return _nncodec.code(levels, settings), qp


def decode(stream: bytes, limits: Limits = _LIMITS, *, isolated: bool = True) -> dict[str, Tensor]:
    """Decode a plain NNC stream.

    The standard has no checksums: damage inside a tensor may go unnoticed and give wrong values.
    Use the container ([`compress`][snello.codec.compress]) to detect it. The decoder is native code
    that does not check its input, so it runs in a child process whose time and memory are limited;
    any failure of it becomes one error. Starting the child takes about 0.2 s.

    Args:
        stream: the bytes of [`encode`][snello.codec.encode], or of another NNC encoder.
        limits: sizes, memory and time that decoding may take.
        isolated: False decodes in this process, which is faster for small streams. Use it for
            trusted streams only: of the limits, only those on sizes are then enforced.

    Returns:
        Name -> float32 tensor on the CPU, in the order of the stream. A scalar comes back as shape
        `(1,)`: the stream has no tensors of zero dimensions.

    Raises:
        BitstreamError: if the stream is truncated, cannot be decoded, or exceeds the limits.
        ConfigError: if no child process can be started.
        MissingExtraError: without nncodec.
    """
    return {
        name: tensor
        for name, _, tensor in decode_each(checked_input(stream, limits), limits, isolated)
    }


def decode_each(
    stream: bytes, limits: Limits, isolated: bool
) -> Iterator[tuple[str, int | None, Tensor]]:
    """Name, quantisation parameter (None if the stream has none) and values of each tensor.

    Raises:
        BitstreamError: as [`decode`][snello.codec.decode], and for a name that occurs twice.
    """
    try:
        units = list(_worker.split_units(stream))
    except ValueError as error:
        raise BitstreamError(str(error)) from error
    seen: set[str] = set()
    for key, qp, tensor in (
        decode_isolated(stream, limits) if isolated else _decode_here(units, limits)
    ):
        name = unescape(key)
        if name in seen:
            raise BitstreamError(f"the NNC stream has the tensor {name!r} twice: it is damaged")
        seen.add(name)
        yield name, qp, tensor


def _decode_here(units: list[bytes], limits: Limits) -> Iterator[tuple[str, int | None, Tensor]]:
    _nncodec.core("coder")
    what = "decoding the stream, which is damaged or no NNC stream,"
    check_claims(_nncodec.call(what, lambda: _worker.read_claims(units)), limits)
    tensors = _worker.decode_units(units)
    while (found := _nncodec.call(what, lambda: next(tensors, None))) is not None:
        name, qp, array = found
        yield name, qp, torch.from_numpy(array)


def quantised(
    tensors: Mapping[str, Tensor], settings: CodecSettings = _DEFAULTS
) -> dict[str, Tensor]:
    """The exact values that the decoder will return, without coding anything.

    They are computed by the quantiser and its inverse, so that `decode(encode(x)) ==
    quantised(x)` tests the coder.

    Args:
        tensors: as for [`encode`][snello.codec.encode].
        settings: as for [`encode`][snello.codec.encode]; but `qp_of` may name tensors that are not
            given, so that part of a model can be quantised with the settings of the whole.

    Returns:
        Name -> float32 tensor; integer multiples of `step_sizes`. A scalar has shape
        `(1,)`.

    Raises:
        ConfigError: as [`encode`][snello.codec.encode].
        MissingExtraError: without nncodec.
    """
    check_settings(settings)
    return {
        name: _quantise_one(name, tensor, settings)
        for name, tensor in prepared(tensors, "quantised").items()
    }


def step_sizes(
    tensors: Mapping[str, Tensor], settings: CodecSettings = _DEFAULTS
) -> dict[str, float]:
    """The quantisation step size of each tensor.

    It follows from `qp_of`, `qp` or `nonweight_qp`; it is larger for tensors whose levels
    would exceed 2^30. As for [`quantised`][snello.codec.quantised], `qp_of` may name other tensors,
    too.

    Raises:
        ConfigError: as [`encode`][snello.codec.encode].
    """
    check_settings(settings)
    return {
        name: step_size(quantisation_parameter(name, tensor, settings))
        for name, tensor in prepared(tensors, "step_sizes").items()
    }


def _quantise_one(name: str, tensor: Tensor, settings: CodecSettings) -> Tensor:
    qp = quantisation_parameter(name, tensor, settings)
    return torch.from_numpy(
        _nncodec.quantise(escape(name), tensor.numpy(), 0, qp, settings).values()
    )


def check_mapping(tensors: object, what: str) -> None:
    """Raise a ConfigError for anything but a mapping.

    Args:
        tensors: what was given for named tensors.
        what: the caller, for the error.
    """
    if not isinstance(tensors, Mapping):
        way = (
            "pass model.state_dict()"
            if hasattr(tensors, "state_dict")
            else "pass a mapping of names to tensors"
        )
        raise ConfigError(f"{what}: a {type(tensors).__name__} holds no tensors by name: {way}")


def prepared(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Convert tensors for the coder: float32, contiguous, on the CPU, at least one dimension.

    Args:
        tensors: as for [`encode`][snello.codec.encode].
        what: the caller, for the error.

    Raises:
        ConfigError: as [`encode`][snello.codec.encode].
    """
    check_mapping(tensors, what)
    for name in tensors:
        escape(name)
    return {name: _ready_one(name, tensor) for name, tensor in tensors.items()}


def _ready_one(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ConfigError(f"tensor {name!r} is a {type(tensor).__name__}, not a torch.Tensor")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise ConfigError(
            f"tensor {name!r} holds no dense values (layout {tensor.layout}, device {tensor.device})"
        )
    if not tensor.is_floating_point() or tensor.numel() == 0:
        raise ConfigError(
            f"tensor {name!r} of dtype {tensor.dtype} and shape {tuple(tensor.shape)}: an NNC stream carries "
            "non-empty floating tensors; compress() also stores the others"
        )
    if tensor.dim() > MAX_DIMENSIONS:
        raise ConfigError(
            f"tensor {name!r} has {tensor.dim()} dimensions; the coder takes {MAX_DIMENSIONS}"
        )
    ready = (
        tensor.detach()
        .to("cpu", torch.float32)
        .reshape(tensor.shape or (1,))
        .contiguous()
        .resolve_neg()
    )
    # Checked after the cast: large float64 values become infinite in float32.
    if bad := int((~torch.isfinite(ready)).sum()):
        raise ConfigError(
            f"tensor {name!r} has {bad} of {ready.numel()} values that are NaN or infinite in float32; "
            "they have no code, so repair the tensor first"
        )
    return ready

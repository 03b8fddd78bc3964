"""The plain NNC stream, through the package nncodec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from snello.codec._names import escape, unescape
from snello.codec._settings import CodecSettings, quantisation_parameter, step_size
from snello.errors import BitstreamError, ConfigError, require

_DEFAULTS = CodecSettings()

_HEADER_UNITS = 3
"""Units before the first tensor: start, model parameter set, topology."""


def encode(tensors: Mapping[str, Tensor], settings: CodecSettings = _DEFAULTS) -> bytes:
    """Code tensors as one NNC stream. The same input gives the same bytes.

    Args:
        tensors: name -> floating tensor of any shape with at least one element; float64, float16 and
            bfloat16 are coded as float32. For integers and empty tensors use :func:`compress`.
        settings: quantisation parameters and tools.

    Returns:
        The stream. It is the stream that nncodec writes for the same dictionary, byte for byte.

    Raises:
        ConfigError: for a NaN or an infinity, an integer, complex, empty or oversized tensor, or a name that
            cannot be written, each with the name; or if there is nothing to code.
        MissingExtraError: without nncodec.
    """
    ready = _ready(tensors)
    if not ready:
        raise ConfigError("encode: there is no tensor to code; pass at least one")
    parts = [_encode_one(index, name, ready[name], settings) for index, name in enumerate(ready)]
    # Each part opens with the same three units; the stream needs them once.
    header = b"".join(_units(parts[0])[:_HEADER_UNITS])
    return header + b"".join(unit for part in parts for unit in _units(part)[_HEADER_UNITS:])


def decode(stream: bytes) -> dict[str, Tensor]:
    """Decode a plain NNC stream.

    The standard protects nothing inside a tensor: of a damaged stream, wrong values may be all there is to
    see. Where damage must be noticed, use the container (:func:`compress`).

    Args:
        stream: the bytes of :func:`encode`, or of another NNC encoder.

    Returns:
        Name -> float32 tensor on the CPU, in the order of the stream. A scalar comes back as shape ``(1,)``:
        the stream has no tensors of zero dimensions.

    Raises:
        BitstreamError: if the stream is truncated or cannot be decoded.
        MissingExtraError: without nncodec.
    """
    _units(stream)
    nnc = _nnc()
    arrays = _call(
        "decoding the stream, which is damaged or no NNC stream,", lambda: nnc.decompress(bytearray(stream))
    )
    return {unescape(name): torch.from_numpy(array).to(torch.float32) for name, array in arrays.items()}


def quantised(tensors: Mapping[str, Tensor], settings: CodecSettings = _DEFAULTS) -> dict[str, Tensor]:
    """The exact values that the decoder will give, without coding anything.

    Computed by the quantiser and its inverse alone, with no arithmetic coding in between, so that
    ``decode(encode(x)) == quantised(x)`` tests the coder.

    Args:
        tensors: as for :func:`encode`.
        settings: as for :func:`encode`.

    Returns:
        Name -> float32 tensor; integer multiples of :func:`step_sizes`. A scalar has shape ``(1,)``.

    Raises:
        ConfigError: as :func:`encode`.
        MissingExtraError: without nncodec.
    """
    return {name: _quantise_one(name, tensor, settings) for name, tensor in _ready(tensors).items()}


def step_sizes(tensors: Mapping[str, Tensor], settings: CodecSettings = _DEFAULTS) -> dict[str, float]:
    """The quantisation step size of each tensor.

    It is that of ``qp`` or ``nonweight_qp``, or a larger one where values are so large that the levels would
    not fit into 2^30.

    Raises:
        ConfigError: as :func:`encode`.
    """
    return {
        name: step_size(quantisation_parameter(name, tensor, settings))
        for name, tensor in _ready(tensors).items()
    }


def _ready(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the coder wants them: float32, contiguous, on the CPU, at least one dimension."""
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
            "non-empty floating tensors; compress() stores the others beside it"
        )
    ready = tensor.detach().to("cpu", torch.float32).reshape(tensor.shape or (1,)).contiguous()
    if bad := int((~torch.isfinite(ready)).sum()):
        raise ConfigError(
            f"tensor {name!r} has {bad} of {ready.numel()} values that are NaN or infinite in float32; "
            "they have no code, so repair the tensor first"
        )
    return ready


def _encode_one(index: int, name: str, tensor: Tensor, settings: CodecSettings) -> bytes:
    # One tensor at a time: for each tensor, nncodec copies every other one (quadratic in the model's size).
    model = require("nncodec.nnc_core.nnr_model", "nnc", "NNC coding").NNRModel(
        {escape(name): tensor.numpy()}
    )
    model.model_info["parameter_index"][escape(name)] = index
    return bytes(_compress(name, tensor, settings, model=model))


def _quantise_one(name: str, tensor: Tensor, settings: CodecSettings) -> Tensor:
    return torch.from_numpy(_compress(name, tensor, settings, quantize_only=True)[escape(name)])


def _compress(name: str, tensor: Tensor, settings: CodecSettings, **options: Any) -> Any:
    key = escape(name)
    # Explicit per tensor, because nncodec takes nonweight_qp=0 for "not given".
    qp = quantisation_parameter(name, tensor, settings)
    nnc, numpy = _nnc(), require("numpy", "nnc", "NNC coding")
    return _call(
        f"coding tensor {name!r}",
        lambda: nnc.compress(
            {key: tensor.numpy()},
            qp_per_tensor={key: numpy.int32(qp)},
            use_dq=settings.dependent_quantisation,
            row_skipping=settings.row_skipping,
            bitstream_path=None,
            return_bitstream=True,
            verbose=False,
            **options,
        ),
    )


def _nnc() -> Any:
    return require("nncodec.nnc", "nnc", "NNC coding")


def _call(what: str, action: Callable[[], Any]) -> Any:
    """Run a call into nncodec; whatever it raises (SystemExit included) becomes one error of ours."""
    try:
        return action()
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise BitstreamError(f"{what} failed in nncodec ({type(error).__name__}): {reason}") from error


def _units(stream: bytes) -> list[bytes]:
    """The units of a stream. Each opens with its size: one flag bit, then 15 bits, or 31 with the flag."""
    return list(_iter_units(bytes(stream)))


def _iter_units(stream: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(stream) or position == 0:
        width = 4 if stream[position : position + 1] >= b"\x80" else 2
        size = int.from_bytes(stream[position : position + width], "big") & ((1 << (8 * width - 1)) - 1)
        if size <= width or position + size > len(stream):
            raise BitstreamError(
                f"NNC stream of {len(stream)} bytes: the unit at byte {position} says it has {size} bytes, "
                f"{len(stream) - position} are there; the stream is truncated, damaged or of another kind"
            )
        yield stream[position : position + size]
        position += size

"""The calls into nncodec that quantise and code one tensor.

They use `nncodec.nnc_core` directly: `nncodec.nnc` imports torchvision, pandas, scikit-learn,
OpenCV and h5py. The bytes are the same as those that `nncodec.nnc.compress` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from snello.errors import BitstreamError, reason_of, require

from ._install import require_nncodec
from ._settings import MAX_CODEBOOK, QP_DENSITY, CodecSettings

_UNARY_LENGTH_MINUS_1 = 10
_ENCODER = {
    "cabac_unary_length_minus1": _UNARY_LENGTH_MINUS_1,
    "param_opt_flag": True,
    "partial_data_counter": 0,
    "general_profile_idc": 1,
    "node_id_present_flag": 1,
    "device_id": 0,
    "mps_parent_signalling_enabled_flag": 0,
    "parent_node_id_present_flag": 0,
    "temporal_context_modeling_flag": 0,
    "pre_signalling": 0,
}


def core(module: str) -> Any:
    """A module of `nncodec.nnc_core`.

    Raises:
        MissingExtraError: without nncodec.
    """
    # The package first, because its modules import each other through it.
    require_nncodec("nncodec.nnc_core")
    return require_nncodec(f"nncodec.nnc_core.{module}")


@dataclass(frozen=True)
class Quantised:
    """One tensor after quantisation.

    Attributes:
        key: its name in the stream.
        model: nncodec's description of the tensor.
        data: its levels, and the options of their quantisation.
    """

    key: str
    model: dict[str, Any]
    data: dict[str, Any]

    def values(self) -> Any:
        """The values that the decoder will return: float32 array of the tensor's shape."""
        data = {
            name: dict(part) if isinstance(part, dict) else part for name, part in self.data.items()
        }
        call("dequantising", lambda: core("approximator").rec(data))
        return data["parameters"][self.key]


def quantise(key: str, array: Any, index: int, qp: int, settings: CodecSettings) -> Quantised:
    """Quantise one float32 array.

    Args:
        key: its name in the stream.
        array: float32 array with at least one dimension.
        index: its position in the stream.
        qp: its quantisation parameter.
        settings: the coding options.
    """
    numpy = require("numpy", "nnc", "NNC coding")
    approximator = core("approximator")

    def run() -> Quantised:
        model = core("nnr_model").NNRModel({key: array}).model_info
        model["parameter_index"][key] = index
        data = approximator.init_approx_data(
            {key: array}, model, qp_density=QP_DENSITY, scan_order=0
        )
        options = approximator.ApproxInfo(
            data, model, "uniform", 0, qp, False, not settings.dependent_quantisation, _UNARY_LENGTH_MINUS_1, 0,
            qp_per_tensor={key: numpy.int32(qp)},  # explicit, for nonweight_qp=0 means "not given"
        )  # fmt: skip
        return Quantised(
            key, model, approximator.approx(options.approx_info, model, data, _ENCODER)
        )

    return call(f"quantising tensor {key!r}", run)  # type: ignore[no-any-return]


def code(tensor: Quantised, settings: CodecSettings) -> bytes:
    """Code one tensor as a stream: start, model parameter set, topology, and its data unit."""
    plain = _code(tensor, settings)
    listed = _with_codebook(tensor) if settings.codebook else None
    return plain if listed is None else min(plain, _code(listed, settings), key=len)


def _code(tensor: Quantised, settings: CodecSettings) -> bytes:
    options = _ENCODER | {"row_skip_enabled_flag": int(settings.row_skipping)}
    coder = core("coder")
    coded = call(
        f"coding tensor {tensor.key!r}", lambda: coder.encode(options, tensor.model, tensor.data)
    )
    return bytes(coded[0])


def _with_codebook(tensor: Quantised) -> Quantised | None:
    """The tensor with levels as indices into a codebook; None if that is not exact or too long."""
    numpy = require("numpy", "nnc", "NNC coding")
    key, levels = tensor.key, tensor.data["parameters"][tensor.key]
    listed, indices, counts = numpy.unique(levels, return_inverse=True, return_counts=True)
    # Beyond 2^24 the uniform dequantiser rounds the level itself, a codebook only level * step:
    # the values would differ.
    if len(listed) > MAX_CODEBOOK or max(abs(int(listed[0])), abs(int(listed[-1]))) > 2**24:
        return None
    # Index zero is the cheapest to code. nncodec would code the tensor once per entry to find the
    # best one for it; the most frequent entry is the best or close to it.
    zero = int(counts.argmax())
    growth = core("approximator").codebook.get_best_egk(listed, zero)[0]
    changed = {
        "parameters": (indices.reshape(levels.shape) - zero).astype(numpy.int32),
        "approx_method": "codebook",
        "dq_flag": 0,
        "codebooks": listed,
        "codebook_zero_offsets": zero,
        "codebooks_egk": growth,
    }
    return replace(
        tensor, data=tensor.data | {name: {key: value} for name, value in changed.items()}
    )


def call(what: str, action: Callable[[], Any]) -> Any:
    """Call nncodec.

    Args:
        what: description of the call, for the error.
        action: the call.

    Raises:
        BitstreamError: for any exception, SystemExit included.
    """
    try:
        return action()
    except (Exception, SystemExit) as error:
        reason = reason_of(error)[:120]
        raise BitstreamError(
            f"{what} failed in nncodec ({type(error).__name__}): {reason}"
        ) from error

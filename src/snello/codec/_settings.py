"""The coding options, in the terms of the standard, and the step size they mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snello.errors import ConfigError

QP_DENSITY = 2
"""log2 of the number of quantisation parameters per doubling of the step size."""

QP_MIN, QP_MAX = -128, 127
"""What the stream can carry: a signed number of 6 + QP_DENSITY bits."""

MAX_LEVEL = 2**30
"""Largest integer level used: a safe half of what the coder's int32 holds."""


@dataclass(frozen=True)
class CodecSettings:
    """How tensors are quantised and coded.

    Attributes:
        qp: quantisation parameter of tensors with two or more dimensions; useful values are -20 (coarse) to
            -50 (fine). The step size doubles every four, see :func:`step_size`.
        nonweight_qp: quantisation parameter of vectors and scalars: biases, BatchNorm parameters.
        dependent_quantisation: trellis-coded quantisation with two interleaved quantisers. Fewer bytes at the
            same ``qp``; an error of up to two steps, mostly below one, instead of half a step. A zero between
            other weights may become a step or two (at 50 % sparsity about one in a hundred does): switch
            it off where pruned weights must stay zero.
        row_skipping: rows whose levels are all zero cost one bit.

    Raises:
        ConfigError: for a quantisation parameter that is no integer from -128 to 127, or a switch that is no
            boolean.
    """

    qp: int = -32
    nonweight_qp: int = -75
    dependent_quantisation: bool = True
    row_skipping: bool = True

    def __post_init__(self) -> None:
        for name in ("qp", "nonweight_qp"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not QP_MIN <= value <= QP_MAX:
                raise ConfigError(f"{name}={value!r}: choose an integer from {QP_MIN} to {QP_MAX}")
        for name in ("dependent_quantisation", "row_skipping"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: choose True or False")


def step_size(qp: int) -> float:
    """The quantisation step size: (4 + qp mod 4) · 2^(⌊qp / 4⌋ − 2), with Python's floor and modulo."""
    steps = 1 << QP_DENSITY
    return float((steps + (qp & (steps - 1))) * 2.0 ** ((qp >> QP_DENSITY) - QP_DENSITY))


def quantisation_parameter(name: str, tensor: Tensor, settings: CodecSettings) -> int:
    """The quantisation parameter of one tensor: that of its kind, raised until its levels fit.

    A level beyond int32 would overflow in the coder. Raising the step size until the largest level is 2^30
    still leaves values finer than float32 itself can tell apart.

    Args:
        name: for the message.
        tensor: float32, not empty.
        settings: the parameters of the two kinds.

    Raises:
        ConfigError: if the largest value needs a step size beyond what the stream can carry (about 4e18).
    """
    wanted = settings.qp if tensor.dim() > 1 else settings.nonweight_qp
    largest = float(tensor.abs().max())
    fitting = (qp for qp in range(wanted, QP_MAX + 1) if largest <= MAX_LEVEL * step_size(qp))
    found = next(fitting, None)
    if found is None:
        limit = MAX_LEVEL * step_size(QP_MAX)
        raise ConfigError(
            f"tensor {name!r}: its largest magnitude {largest:.3g} exceeds {limit:.3g}, "
            "the largest that an NNC stream can carry; rescale it or leave it out"
        )
    return found

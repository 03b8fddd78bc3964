"""The coding options, in the terms of the standard, and step sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from snello.errors import ConfigError, is_whole

QP_DENSITY = 2
"""log2 of the number of quantisation parameters per doubling of the step size."""

QP_MIN, QP_MAX = -128, 127
"""Range of the parameter in the stream: a signed number of 6 + QP_DENSITY bits."""

MAX_LEVEL = 2**30
"""Largest integer level: half the range of the coder's int32, as a safety margin."""

MAX_DIMENSIONS = 32
"""Largest number of dimensions of a tensor, as in numpy 1."""

MAX_CODEBOOK = 256
"""Largest number of entries of a codebook: a longer one costs more bytes than it saves."""


class QPTable(Mapping[str, int]):
    """Immutable mapping from tensor name to quantisation parameter, hashable like settings."""

    def __init__(self, items: Mapping[str, int]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> int:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


_NO_TABLE: Mapping[str, int] = QPTable({})


@dataclass(frozen=True)
class CodecSettings:
    """Options of quantisation and coding.

    Attributes:
        qp: quantisation parameter of tensors with two or more dimensions; useful values are -20
            (coarse) to -50 (fine). The step size doubles every four, see `step_size`.
        nonweight_qp: quantisation parameter of vectors and scalars: biases, BatchNorm parameters.
        dependent_quantisation: trellis-coded quantisation with two interleaved quantisers. Fewer
            bytes at the same `qp`; an error of up to two steps, mostly below one, instead of half
            a step. Some zeros between other weights become one or two steps (about one in a hundred
            at 50 % sparsity): switch it off if pruned weights must stay zero.
        row_skipping: rows whose levels are all zero cost one bit.
        codebook: also code tensors of at most `MAX_CODEBOOK` distinct levels with a codebook,
            the list of those levels, and keep the smaller result. It saves bytes where weights are
            clustered and never changes values. The standard has it for uniform quantisation only,
            so `dependent_quantisation` has to be off.
        qp_of: tensor name -> quantisation parameter of that tensor, instead of `qp` or
            `nonweight_qp`. Any mapping; it is copied into an immutable one, so that settings are
            hashable.

    Raises:
        ConfigError: for a quantisation parameter that is no integer from -128 to 127 (with its
            tensor's name), a switch that is no boolean, a table that is no mapping from names, or a
            codebook together with dependent quantisation.
    """

    qp: int = -32
    nonweight_qp: int = -75
    dependent_quantisation: bool = True
    row_skipping: bool = True
    codebook: bool = False
    qp_of: Mapping[str, int] = _NO_TABLE

    def __post_init__(self) -> None:
        for name in ("qp", "nonweight_qp"):
            _check_qp(name, getattr(self, name))
        for name in ("dependent_quantisation", "row_skipping", "codebook"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: choose True or False")
        if self.codebook and self.dependent_quantisation:
            raise ConfigError(
                "codebook=True with dependent_quantisation=True: the standard has codebooks for uniform "
                "quantisation only; switch one of the two off"
            )
        if not isinstance(self.qp_of, Mapping):
            raise ConfigError(f"qp_of={self.qp_of!r}: pass a mapping from tensor names to integers")
        for tensor, value in self.qp_of.items():
            if not isinstance(tensor, str):
                raise ConfigError(f"qp_of has the key {tensor!r}: names of tensors are strings")
            _check_qp(f"qp_of[{tensor!r}]", value)
        # The dataclass is frozen.
        object.__setattr__(self, "qp_of", QPTable(self.qp_of))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `CodecSettings(**settings.to_dict())` is the inverse."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "qp_of": dict(self.qp_of)
        }


def _check_qp(name: str, value: object) -> None:
    if not is_whole(value) or not QP_MIN <= value <= QP_MAX:
        raise ConfigError(f"{name}={value!r}: choose an integer from {QP_MIN} to {QP_MAX}")


def check_settings(settings: object) -> None:
    """Raise a ConfigError for anything but settings."""
    if not isinstance(settings, CodecSettings):
        raise ConfigError(
            f"settings={settings!r}: pass a CodecSettings, such as CodecSettings(qp=-32)"
        )


def check_names(settings: CodecSettings, names: Collection[str]) -> None:
    """Check that `qp_of` only names tensors that are coded, to find misspelt names.

    Raises:
        ConfigError: for another name.
    """
    odd = [name for name in settings.qp_of if name not in names]
    if odd:
        raise ConfigError(
            f"qp_of names the tensor {odd[0]!r} ({len(odd)} such of {len(settings.qp_of)}), which is not among "
            f"the {len(names)} floating tensors to code; take it out of the table, or correct the name"
        )


def step_size(qp: int) -> float:
    """The quantisation step size: (4 + qp mod 4) · 2^(⌊qp / 4⌋ − 2)."""
    steps = 1 << QP_DENSITY
    # & and >> are mod and floor division, for negative qp as well.
    return float((steps + (qp & (steps - 1))) * 2.0 ** ((qp >> QP_DENSITY) - QP_DENSITY))


def quantisation_parameter(name: str, tensor: Tensor, settings: CodecSettings) -> int:
    """The quantisation parameter of one tensor, raised until its levels fit.

    It is that in `qp_of`, or that of its kind. Levels beyond int32 would overflow in the coder,
    so that it is raised until the largest level is at most 2^30: steps are still finer than the
    spacing of float32 at that value.

    Args:
        name: name of the tensor, as in `qp_of`.
        tensor: float32, not empty.
        settings: the coding options.

    Raises:
        ConfigError: if the largest value needs a step size beyond what the stream can carry (about
            4e18).
    """
    wanted = settings.qp_of.get(name, settings.qp if tensor.dim() > 1 else settings.nonweight_qp)
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

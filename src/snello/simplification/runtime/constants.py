"""Constants in a lean network: their shape, and a cache of values made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class CachedConstant(nn.Module):
    """A module that caches one value made of constants, as long as those stay the same."""

    def cached(
        self, key: tuple[Any, ...], source: Tensor | None, compute: Callable[[], Value]
    ) -> Value:
        """Return the cached value, computed again when the key or the source has changed.

        Nothing is cached while gradients are recorded, nor under torch.compile.

        Args:
            key: anything else that the value depends on.
            source: the constants; its device, dtype, version and identity belong to the key.
            compute: returns the value.
        """
        if recording() or torch.compiler.is_compiling():
            return compute()
        if source is not None:
            version = None if source.is_inference() else source._version
            key = (*key, source.device, source.dtype, version)
        # The source is held, so that no other tensor can come to lie at its address.
        known: tuple[Any, Tensor | None, Value] | None = self.__dict__.get("_cache")
        if known is None or known[0] != key or known[1] is not source:
            known = self.__dict__["_cache"] = key, source, compute()
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cache"}


class Same:
    """A cache key that equals another one only for the very same object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape one value per channel to broadcast over the channels of x."""
    return vector.to(x.dtype).view(-1, *[1] * (x.dim() - axis - 1))


def recording() -> bool:
    """Return True if values must be made anew: for gradients, or for torch.jit.trace, which
    compares two runs.
    """
    return torch.is_grad_enabled() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call, no-any-return]


def added(y: Tensor, constant: Tensor) -> Tensor:
    """Add a constant to a layer's fresh output; in place if no gradient is recorded."""
    return y + constant if recording() else y.add_(constant)


def index_tensor(index: Sequence[int] | None) -> Tensor | None:
    """Positions as a tensor; None for None."""
    return None if index is None else torch.tensor(index, dtype=torch.long)

"""Constants in a lean network: their shape, and a cache of values computed from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class CachedConstant(nn.Module):
    """A module that caches one value computed from constants until these change."""

    def cached(
        self, key: tuple[Any, ...], source: Tensor | None, compute: Callable[[], Value]
    ) -> Value:
        """Return the cached value, computed again when the key or the source has changed.

        Nothing is cached while gradients are recorded, nor under torch.compile.

        Args:
            key: everything else on which the value depends.
            source: the constants; device, dtype, version and identity are added to the key. None if
                the value depends on the key alone.
            compute: returns the value.
        """
        if recording() or torch.compiler.is_compiling():
            return compute()
        if source is not None:
            version = None if source.is_inference() else source._version
            key = (*key, source.device, source.dtype, version)
        # A reference to the source is kept, so that no other object can have its identity.
        known: tuple[Any, Tensor | None, Value] | None = self.__dict__.get("_cache")
        if known is None or known[0] != key or known[1] is not source:
            known = self.__dict__["_cache"] = key, source, compute()
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cache"}


class Same:
    """A cache key that compares an object by identity."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape one value per channel to broadcast over the channels of x."""
    return vector.to(x.dtype).view(-1, *[1] * (x.dim() - axis - 1))


def recording() -> bool:
    """True if cached and in-place values must not be used.

    This is while gradients are recorded, and under torch.jit.trace, which compares two runs.
    """
    return torch.is_grad_enabled() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call, no-any-return]


def added(y: Tensor, constant: Tensor) -> Tensor:
    """Add a constant to a newly computed output, in place if no gradient is recorded."""
    return y + constant if recording() else y.add_(constant)


def index_tensor(index: Sequence[int] | None) -> Tensor | None:
    """Positions as a tensor; None for None."""
    return None if index is None else torch.tensor(index, dtype=torch.long)

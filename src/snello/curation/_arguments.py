"""Checks of what a dynamic subset is given: the dataset, and indices of its samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from snello.errors import ConfigError, DataError

from ._source import integers


def length_of(dataset: Any) -> int:
    """Number of samples of a map-style dataset.

    Raises:
        DataError: for an iterable or empty dataset, or one without a length.
    """
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"{name} is an iterable dataset: its samples have no index, so none can be left out before it is read, nor "
            "be told from another when its loss is known; use a map-style dataset (__getitem__ and __len__)"
        )
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{name} has no __getitem__ or no __len__: samples are left out by their index; use a map-style dataset"
        )
    samples = len(dataset)
    if samples < 1:
        raise DataError(f"{name} is empty: there is nothing to leave out")
    return samples


def check_index(index: object) -> None:
    """Refuse anything but a tensor of integers, `(B,)`, by a ConfigError."""
    if not isinstance(index, Tensor):
        raise ConfigError(f"index must be a tensor of integers, (B,), not {type(index).__name__}")
    if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise ConfigError(
            f"index must be integers of the shape (B,), not {index.dtype} of {tuple(index.shape)}"
        )


def mask_of(always: Iterable[int] | Tensor, samples: int) -> Tensor:
    """Mark the samples that are never left out, bool `(N,)`.

    Raises:
        ConfigError: for indices outside of the dataset.
    """
    chosen = integers(always, "always= has")
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < samples:
        raise ConfigError(
            f"always= has indices {int(chosen.min())} … {int(chosen.max())}, and the dataset has {samples} samples"
        )
    mask = torch.zeros(samples, dtype=torch.bool)
    mask[chosen.flatten()] = True
    return mask

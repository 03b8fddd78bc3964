"""Samplers of what a dynamic subset keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import DistributedSampler, Sampler

from ._source import keys_of

if TYPE_CHECKING:
    from ._dynamic import DynamicSubset


class _OfSubset:
    """The epoch and the state of a sampler, which are those of its subset."""

    keep: DynamicSubset

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch from its start. Without a call the epochs are counted."""
        self.keep.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """State of the subset."""
        return self.keep.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the subset."""
        self.keep.load_state_dict(state)


# Of this class, since Lightning and others put a DistributedSampler around any other sampler.
class SubsetSampler(_OfSubset, DistributedSampler[Any]):
    """Yield what a [`DynamicSubset`][snello.curation.DynamicSubset] keeps, to this process.

    Made by [`DynamicSubset.sampler`][snello.curation.DynamicSubset.sampler]. Its length is that of
    the coming epoch.
    """

    def __init__(self, keep: DynamicSubset) -> None:
        super().__init__(keep, num_replicas=1, rank=0)  # the subset deals out the samples itself
        self.keep = keep

    def __iter__(self) -> Iterator[Any]:
        keys, _ = self.keep.begin()
        return _walk(self.keep, keys_of(keys))

    def __len__(self) -> int:
        return self.keep.coming()


class SubsetBatchSampler(_OfSubset, Sampler[list[Any]]):
    """Yield batches of what a [`DynamicSubset`][snello.curation.DynamicSubset] keeps, to this
    process.

    Made by [`DynamicSubset.batch_sampler`][snello.curation.DynamicSubset.batch_sampler]. Its length
    is that of the coming epoch.
    """

    def __init__(self, keep: DynamicSubset, size: int | None) -> None:
        self.keep, self.batch_size = keep, size

    def __iter__(self) -> Iterator[list[Any]]:
        keys, batch = self.keep.begin()
        rows = keys_of(keys)
        if self.batch_size is not None:
            return _walk(self.keep, _chunks(rows, self.batch_size))
        assert batch is not None
        groups: dict[int, list[Any]] = {}
        for row, number in zip(rows, batch.tolist(), strict=True):
            groups.setdefault(number, []).append(row)
        return _walk(self.keep, list(groups.values()))

    def __len__(self) -> int:
        if self.batch_size is None:
            return self.keep.coming_batches()
        return math.ceil(self.keep.coming() / self.batch_size)


def _chunks(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _walk(keep: DynamicSubset, items: list[Any]) -> Iterator[Any]:
    yield from items
    keep.exhausted()

"""The order in which samples are offered in an epoch, before any is left out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from snello.errors import ConfigError, DataError
from snello.processes import rank_and_size

from ._seeds import generator


@dataclass(frozen=True)
class Offer:
    """Samples of one epoch, for all processes together.

    Attributes:
        keys: int64 `(M,)`, or `(M, L)` where a sampler yields tuples that end with the index.
        batch: int64 `(M,)`, number of the batch that a sample came in; None without batches.
    """

    keys: Tensor
    batch: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """Indices in the dataset, int64 `(M,)`."""
        return places_of(self.keys)


class Source:
    """The user's sampler or batch sampler, or a seeded order without one.

    Args:
        inner: yields indices, or tuples that end with one; with `batches` lists of them.
            A `DistributedSampler` is read as if there were one process. None: all samples.
        samples: length of the dataset.
        shuffle: without a sampler, whether to draw a new order every epoch.
        seed: decides that order.
        batches: whether `inner` yields lists.
        replicas, rank: number of processes among which the samples are dealt out, and this one;
            None: those of a `DistributedSampler`, or of `torch.distributed`.
    """

    def __init__(
        self, inner: Iterable[Any] | None, samples: int, *, shuffle: bool, seed: int,
        batches: bool = False, replicas: int | None = None, rank: int | None = None,
    ) -> None:  # fmt: skip
        if (replicas is None) != (rank is None):
            raise ConfigError(
                f"replicas={replicas}, rank={rank}: give both, or neither for those of torch.distributed"
            )
        if replicas is not None and rank is not None and not 0 <= rank < replicas:
            raise ConfigError(f"rank={rank} must be one of 0 … replicas − 1, with {replicas=}")
        if inner is not None and not hasattr(inner, "__iter__"):
            raise ConfigError(f"a sampler yields indices, and {inner!r} cannot be iterated")
        self.inner, self.batches = inner, batches
        self._samples, self._shuffle, self._seed = samples, shuffle, seed
        self._place = None if replicas is None or rank is None else (rank, replicas)

    def place(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        if self._place is not None:
            return self._place
        if isinstance(self.inner, DistributedSampler):
            return int(self.inner.rank), int(self.inner.num_replicas)
        return rank_and_size()

    def set_epoch(self, epoch: int) -> None:
        """Tell the user's sampler the epoch, if it wants to know."""
        tell = getattr(self.inner, "set_epoch", None)
        if callable(tell):
            tell(epoch)

    def offer(self, epoch: int) -> Offer:
        """The samples of an epoch.

        Raises:
            ConfigError: for keys that are neither integers nor tuples that end with one, or indices
                outside the dataset.
        """
        self.set_epoch(epoch)
        if self.inner is None:
            if not self._shuffle:
                return Offer(torch.arange(self._samples))
            random = generator(self._seed, f"order of epoch {epoch}")
            return Offer(torch.randperm(self._samples, generator=random))
        offered = self._of_batches() if self.batches else Offer(_keys(_whole(self.inner)))
        places = offered.places
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < self._samples:
            raise ConfigError(
                f"the sampler {type(self.inner).__name__} yields indices {int(places.min())} … "
                f"{int(places.max())}, and the dataset has {self._samples} samples: make it for this dataset"
            )
        return offered

    def _of_batches(self) -> Offer:
        assert self.inner is not None
        batches = [_listed(batch) for batch in self.inner]
        sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.int64)
        keys = _keys([key for batch in batches for key in batch])
        return Offer(keys, torch.repeat_interleave(torch.arange(len(batches)), sizes))

    def first_batch(self) -> int:
        """Number of samples in the first batch of the user's batch sampler.

        Raises:
            DataError: if it yields none.
            ConfigError: if it yields no lists.
        """
        assert self.inner is not None
        size = len(_listed(next(iter(self.inner), [])))
        if not size:
            raise DataError(f"the batch sampler {type(self.inner).__name__} yields no batch")
        return size

    def state_dict(self) -> dict[str, Any]:
        """State of the user's sampler: its own, or that of its generator; empty without either."""
        own = getattr(self.inner, "state_dict", None)
        if callable(own):
            return {"sampler": own()}
        random = getattr(self.inner, "generator", None)
        return {"generator": random.get_state()} if isinstance(random, torch.Generator) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the user's sampler."""
        if "sampler" in state and hasattr(self.inner, "load_state_dict"):
            self.inner.load_state_dict(state["sampler"])  # type: ignore[union-attr]
        random = getattr(self.inner, "generator", None)
        if "generator" in state and isinstance(random, torch.Generator):
            random.set_state(state["generator"].cpu())


def places_of(keys: Tensor) -> Tensor:
    """Indices in the dataset of keys, int64 `(M,)`."""
    return keys if keys.dim() == 1 else keys[:, -1]


def keys_of(keys: Tensor) -> list[Any]:
    """Keys as the user's sampler yielded them: integers, or tuples of integers."""
    rows: list[Any] = keys.tolist()
    return rows if keys.dim() == 1 else [tuple(row) for row in rows]


def place_of(key: Any) -> int:
    """Index in the dataset of one key."""
    return int(key[-1]) if isinstance(key, tuple) else int(key)


def _whole(sampler: Iterable[Any]) -> list[Any]:
    """Everything that a sampler yields, on all processes together."""
    if not isinstance(sampler, DistributedSampler):
        return list(sampler)
    # Its own padding would give some samples to two processes.
    alone = copy.copy(sampler)
    samples = len(alone.dataset)  # type: ignore[arg-type]
    alone.num_replicas, alone.rank, alone.drop_last = 1, 0, False
    alone.num_samples = alone.total_size = samples
    return list(alone)


def _listed(batch: Any) -> list[Any]:
    if not hasattr(batch, "__iter__"):
        raise ConfigError(
            f"a batch sampler yields lists of indices, and this one {batch!r}: use sampler=keep.sampler(…)"
        )
    return list(batch)


def _keys(keys: list[Any]) -> Tensor:
    if keys and isinstance(keys[0], list):
        raise ConfigError(
            "that sampler yields lists: use batch_sampler=keep.batch_sampler(…); keys with an index are tuples"
        )
    found = integers(keys, "the sampler yields")
    return found if found.dim() == 2 and found.shape[1] else found.flatten()


def integers(values: Iterable[Any], what: str) -> Tensor:
    """Indices as int64, `(M,)`, or `(M, L)` of tuples.

    Args:
        values: integers, or tuples of integers that end with an index.
        what: beginning of the error.

    Raises:
        ConfigError: for anything else, also numbers with a fraction and truth values, which would
            be taken for the indices 0 and 1.
    """
    values = values.detach().cpu() if isinstance(values, Tensor) else values
    try:
        listed = values if isinstance(values, Tensor) else list(values)
        found = torch.as_tensor(listed) if len(listed) else torch.empty(0, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(_no_integers(what, values)) from error
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise ConfigError(_no_integers(what, values))
    return found.long()


def _no_integers(what: str, values: Any) -> str:
    shown = values[:2] if isinstance(values, (list, Tensor)) else values
    return (
        f"{what} {shown!r}, no integers (nor tuples of integers that end with the index): samples are left out by "
        "their index"
    )

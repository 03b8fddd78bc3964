"""Several processes that share one batch: who am I, and what do we all see?

Where ``torch.distributed`` is not initialised there is one process, and every function here is
free.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from snello.errors import ConfigError

if TYPE_CHECKING:  # a torch that was built without distributed has no such class
    Group = distributed.ProcessGroup | None
else:
    Group = Any


def rank_and_size(group: Group = None) -> tuple[int, int]:
    """The number of this process in its group, and how many there are: ``(0, 1)`` when it is
    alone.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(group), distributed.get_world_size(group)


def sum_over_processes(tensor: Tensor, group: Group = None) -> Tensor:
    """The sum of the processes' tensors, the same on each; the tensor itself, in place.

    Every process of the group has to call it, with a tensor of the same shape.
    """
    if rank_and_size(group)[1] > 1:
        distributed.all_reduce(tensor, group=group)
    return tensor


def mean_over_processes(value: float, device: torch.device, group: Group = None) -> float:
    """The mean of the processes' numbers, the same on each, so that all of them decide alike."""
    size = rank_and_size(group)[1]
    if size == 1:
        return value
    # MPS has no float64, and no process groups either.
    return (
        float(sum_over_processes(torch.tensor(value, dtype=torch.float64, device=device), group))
        / size
    )


_CALLS = itertools.count()
_PATIENCE = timedelta(minutes=5)
"""Time to wait for the others where the timeout of the process group is not known."""


def meet(call: str, facts: str = "") -> None:
    """Wait until every process has come to the same call, with the same facts; before a collective,
    not in it.

    A collective that one process does not enter ends in the abortion of all of them, without a
    reason. The processes meet in the store of the process group instead, which takes less than a
    millisecond and tells who is missing: after four fifths of the group's timeout.

    Args:
        call: what is called, for messages: ``"Pruner.step"``.
        facts: what has to be the same on every process.

    Raises:
        ConfigError: if others do not come, come to another call, or have other facts.
    """
    rank, size = rank_and_size()
    store = _store() if size > 1 else None
    if store is None:
        return
    number, attempt = next(_CALLS), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"snello/{attempt}/{number}/{other}" for other in range(size)]
    store.set(keys[rank], f"{call}\n{facts}")
    try:
        store.wait(keys, _patience())
        said = [store.get(key).decode() for key in keys]
    except (
        RuntimeError,
        ValueError,
    ) as error:  # a timeout, or the end of the process that keeps the store
        raise ConfigError(_missing(call, rank, size, store, keys)) from error
    if len(set(said)) > 1:
        raise ConfigError(_differing(said))
    if number:  # all have come here, and so have read what was said the last time
        store.delete_key(f"snello/{attempt}/{number - 1}/{rank}")


def _store() -> Any:
    """The store of the process group; None where this version of torch does not show it."""
    try:
        return distributed.distributed_c10d._get_default_store()
    except (AttributeError, RuntimeError, ValueError):
        return None


def _patience() -> timedelta:
    try:
        group = distributed.distributed_c10d._get_default_group()
        backend = group._get_backend(
            torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
        )
        timeout: timedelta = backend.options._timeout
    except (AttributeError, RuntimeError, ValueError):
        return _PATIENCE
    return timeout * 4 / 5


def _missing(call: str, rank: int, size: int, store: Any, keys: list[str]) -> str:
    try:
        absent = [str(other) for other, key in enumerate(keys) if not store.check([key])]
    except RuntimeError:
        absent = []
    who = f"rank {', '.join(absent)} of {size} did not come" if absent else "the others have ended"
    return f"{call} on rank {rank}: {who}: call it on every rank, as often and in the same order as on the others"


def _differing(said: list[str]) -> str:
    """The most frequent call and the first other one."""
    usual = Counter(said).most_common(1)[0][0]
    first, other = said.index(usual), next(rank for rank, text in enumerate(said) if text != usual)
    texts = [
        " with ".join(part for part in said[rank].split("\n") if part) for rank in (first, other)
    ]
    return (
        f"the ranks do not do the same: rank {first} calls {texts[0]}, rank {other} calls {texts[1]}: give every rank "
        "the same options, and restore the same state"
    )

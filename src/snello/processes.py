"""Processes that share one batch: rank, world size and reductions.

Without an initialised `torch.distributed` there is one process, and all functions here return at
once.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from .errors import ConfigError

if TYPE_CHECKING:  # a torch that was built without distributed has no such class
    Group = distributed.ProcessGroup | None
else:
    Group = Any


def rank_and_size(group: Group = None) -> tuple[int, int]:
    """Rank of this process in its group, and the group's size; `(0, 1)` for a single process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(group), distributed.get_world_size(group)


def device_of_group(group: Group = None) -> torch.device:
    """Device on which tensors are reduced: that of this process with NCCL, else the CPU."""
    if rank_and_size(group)[1] > 1 and distributed.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def sum_over_processes(tensor: Tensor, group: Group = None) -> Tensor:
    """Sum a tensor over the processes, in place, and return it.

    Every process of the group has to call it, with a tensor of the same shape.
    """
    if rank_and_size(group)[1] > 1:
        distributed.all_reduce(tensor, group=group)
    return tensor


def sum_on_cpu(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, through the device that they communicate on, to the CPU."""
    return sum_over_processes(tensor.to(device_of_group())).cpu()


def mean_over_processes(value: float, device: torch.device) -> float:
    """Mean of a number over the processes: the same on each, so that all decide alike."""
    size = rank_and_size()[1]
    if size == 1:
        return value
    # MPS has no float64, but no process groups either.
    total = sum_over_processes(torch.tensor(value, dtype=torch.float64, device=device))
    return float(total) / size


_CALLS = itertools.count()
_PATIENCE = timedelta(minutes=5)
"""Time to wait for the other processes if the timeout of the group is not known."""


def meet(call: str, facts: str = "") -> None:
    """Wait until every process has reached the same call with the same facts.

    To be called before a collective: if one process does not enter a collective, all of them are
    aborted without a reason. This exchange goes through the store of the process group, takes less
    than a millisecond, and names the missing ranks after four fifths of the group's timeout.

    Args:
        call: name of the call, for messages: `"Pruner.step"`.
        facts: text that has to be the same on every process.

    Raises:
        ConfigError: if other processes do not come, make another call, or have other facts.
    """
    rank, size = rank_and_size()
    store = _store() if size > 1 else None
    if store is None:
        return
    # All processes make the same calls in the same order, so numbers identify them; torchrun keeps
    # the store over restarts, so the attempt is part of the key.
    number, attempt = next(_CALLS), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"snello/{attempt}/{number}/{other}" for other in range(size)]
    store.set(keys[rank], f"{call}\n{facts}")
    try:
        store.wait(keys, _patience())
        said = [store.get(key).decode() for key in keys]
    # A timeout, or the end of the process that keeps the store.
    except (RuntimeError, ValueError) as error:
        raise ConfigError(_missing(call, rank, size, store, keys)) from error
    if len(set(said)) > 1:
        raise ConfigError(_differing(said))
    if number:  # all are here, so all have read the entries of the call before
        store.delete_key(f"snello/{attempt}/{number - 1}/{rank}")


def _store() -> Any:
    """The store of the process group; None if this version of torch does not expose it."""
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
    """An error text from the most frequent call and the first other one."""
    usual = Counter(said).most_common(1)[0][0]
    first, other = said.index(usual), next(rank for rank, text in enumerate(said) if text != usual)
    texts = [
        " with ".join(part for part in said[rank].split("\n") if part) for rank in (first, other)
    ]
    return (
        f"the ranks do not do the same: rank {first} calls {texts[0]}, rank {other} calls {texts[1]}: give every rank "
        "the same options, and restore the same state"
    )


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, in place, by those of the process of rank 0.

    Every process has to call it, with tensors of the same shapes.
    """
    if rank_and_size()[1] == 1:
        return
    device = device_of_group()
    for tensor in tensors:
        sent = tensor.detach().to(device).contiguous()
        distributed.broadcast(sent, src=0)
        tensor.detach().copy_(sent)

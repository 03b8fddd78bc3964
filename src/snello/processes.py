"""Several processes that share one batch: who am I, and what do we all see?

Where ``torch.distributed`` is not initialised there is one process, and every function here is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:  # a torch that was built without distributed has no such class
    Group = distributed.ProcessGroup | None
else:
    Group = Any


def rank_and_size(group: Group = None) -> tuple[int, int]:
    """The number of this process in its group, and how many there are: ``(0, 1)`` when it is alone."""
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
    return float(sum_over_processes(torch.tensor(value, dtype=torch.float64, device=device), group)) / size

"""The same decision on all processes of a distributed training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed

from snello.processes import rank_and_size


def from_first_rank(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The first rank's values on every rank, sent in one message.

    With masks that differ by a single neuron, the copies of the model on the ranks would drift
    apart, and phi does differ in its last bits between hardware or BatchNorm statistics. In a
    single process the tensors themselves are returned.

    Args:
        tensors: name -> tensor; the same names, shapes and dtypes on every rank.
        device: a device that the process group's backend can send from: the model's.
    """
    if rank_and_size()[1] == 1 or not tensors:
        return dict(tensors)
    own = list(tensors.values())
    # One flat tensor needs a single broadcast for all layers.
    flat = torch.cat([t.flatten().to(device, _sent_as(t.dtype)) for t in own])
    distributed.broadcast(flat, src=0)
    parts = flat.split([t.numel() for t in own])  # type: ignore[no-untyped-call]
    return {
        name: part.view(t.shape).to(t) for name, t, part in zip(tensors, own, parts, strict=True)
    }


def _sent_as(dtype: torch.dtype) -> torch.dtype:
    # Not every backend sends booleans.
    return torch.uint8 if dtype is torch.bool else dtype

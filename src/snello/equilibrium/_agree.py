"""One decision for all processes of a distributed training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed

from snello.processes import rank_and_size


def from_first_rank(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The first rank's values, on every rank, in one message; in a single process the tensors
    themselves.

    Masks that differ by one neuron between ranks would let the copies of the model drift apart for
    good, and the last bits of phi do differ where the ranks' hardware or their BatchNorm statistics
    do.

    Args:
        tensors: name -> tensor; the same names, shapes and dtypes on every rank.
        device: where the process group's backend can send from: the model's device.
    """
    if rank_and_size()[1] == 1 or not tensors:
        return dict(tensors)
    own = list(tensors.values())
    flat = torch.cat([t.flatten().to(device, _sent_as(t.dtype)) for t in own])
    distributed.broadcast(flat, src=0)
    parts = flat.split([t.numel() for t in own])  # type: ignore[no-untyped-call]
    return {
        name: part.view(t.shape).to(t) for name, t, part in zip(tensors, own, parts, strict=True)
    }


def _sent_as(dtype: torch.dtype) -> torch.dtype:
    # Not every backend sends booleans.
    return torch.uint8 if dtype is torch.bool else dtype

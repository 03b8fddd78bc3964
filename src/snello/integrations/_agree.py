"""Pruning masks: those of a resumed training, and their synchronisation across processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed, nn

from snello.processes import copy_from_first, rank_and_size
from snello.pruning import Pruner


@contextmanager
def zeros_expected(resumed: bool) -> Iterator[None]:
    """Build a pruner inside the block without a warning of zeros that no mask holds.

    Args:
        resumed: True if the state of the pruner is loaded next, with the masks of the zeros.
    """
    with warnings.catch_warnings():
        if resumed:
            warnings.filterwarnings("ignore", ".*no mask holds them", UserWarning)
        yield


def agree_on_pruning(pruner: Pruner, model: nn.Module) -> None:
    """Broadcast the masks and the weights of rank 0 to all processes.

    All processes have the same averaged loss and the same weights, and so should take the same
    decisions. A mask that differs on one rank would go unnoticed, though, and the broadcast is
    cheap: one per pruning step.
    """
    rank, size = rank_and_size()
    if size == 1:
        return
    masks: list[Any] = [{name: mask.cpu() for name, mask in pruner.masks.items()}]
    distributed.broadcast_object_list(masks)
    copy_from_first([*model.parameters(), *model.buffers()])
    if rank:
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        state = pruner.state_dict()
        devices = {name: p.device for name, p in model.named_parameters(remove_duplicate=False)}
        state["masks"] = {name: mask.to(devices[name]) for name, mask in masks[0].items()}
        state["best"] = None if state["best"] is None else own
        pruner.load_state_dict(state)

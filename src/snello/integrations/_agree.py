"""The same masks on all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn

from snello.processes import rank_and_size
from snello.pruning import Pruner


def agree_on_pruning(pruner: Pruner, model: nn.Module) -> None:
    """Give every process the masks and the weights of the first one.

    All processes see the same averaged loss and hold the same weights, and so decide alike; but a
    mask that differs on one rank would never be noticed, and this costs one broadcast in a pruning
    step.
    """
    rank, size = rank_and_size()
    if size == 1:
        return
    masks: list[Any] = [{name: mask.cpu() for name, mask in pruner.masks.items()}]
    distributed.broadcast_object_list(masks)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dense = tensor.detach().contiguous()  # channels_last weights are not
            distributed.broadcast(dense, 0)
            tensor.copy_(dense)
    if rank:
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        state = pruner.state_dict()
        devices = {name: p.device for name, p in model.named_parameters(remove_duplicate=False)}
        state["masks"] = {name: mask.to(devices[name]) for name, mask in masks[0].items()}
        state["best"] = None if state["best"] is None else own
        pruner.load_state_dict(state)

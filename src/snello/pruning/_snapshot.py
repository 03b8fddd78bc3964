"""Copies of the weights of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snello.neurons import Masks


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state of a model."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def revive(follower: nn.Module, model: nn.Module, pruned: Masks, kept: Masks) -> None:
    """Copy weights that are no longer pruned from a model into a running average of it.

    Args:
        follower: the running average, changed in place.
        model: the model.
        pruned: masks before.
        kept: masks now, which prune less.
    """
    averages = dict(follower.named_parameters(remove_duplicate=False))
    for name, mask in pruned.items():
        average, present = averages[name], model.get_parameter(name).detach()
        back = ~mask & kept.get(name, torch.ones_like(mask)).to(mask.device)
        average.copy_(torch.where(back.to(average.device), present.to(average), average))

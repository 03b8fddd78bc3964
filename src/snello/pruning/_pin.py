"""Pinning: what was pruned stays exactly zero, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from snello.neurons import Masks, apply_masks


def pin(
    model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks | Callable[[], Masks]
) -> RemovableHandle:
    """Apply the masks again after every ``optimizer.step()``.

    Momentum, weight decay and Adam's moments all write to a pruned weight; none of them gets through. A step
    that a gradient scaler skips changes no weight and needs no pinning. A copy of an optimizer has no hooks:
    pin it again (``copy.deepcopy((model, optimizer, pruner))`` does).

    Args:
        model: the model whose parameters the masks name.
        optimizer: any ``torch.optim`` optimizer over them.
        masks: the masks, or a function that returns the present ones.

    Returns:
        A handle; ``handle.remove()`` lets the weights move again.
    """

    def zero_pruned(*_: Any) -> None:
        apply_masks(model, masks() if callable(masks) else masks)

    return optimizer.register_step_post_hook(zero_pruned)

"""Evaluation mode for the length of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode; after the block every module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        # One by one: model.train() would also change layers that the user keeps in eval mode.
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """`evaluation_mode`, without gradients."""
    with evaluation_mode(model), torch.no_grad():
        yield


@contextmanager
def requiring_gradients(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Record gradients inside the block, also of parameters that the user has frozen."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)

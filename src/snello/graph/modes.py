"""Evaluation mode for the length of a block."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from snello.wrappers import gradients_required

_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module: its parameters, submodules and hooks."""


@contextmanager
def containers_restored(model: nn.Module) -> Iterator[None]:
    """Restore the dictionaries and lists that the classes of a model keep as attributes.

    timm's attention stores a function of its weights in evaluation mode. It would go on with it when
    the weights are pruned afterwards, and would keep the proxies of a trace.
    """
    kept = [
        (holder, copy.copy(holder))
        for module in model.modules()
        for name, holder in vars(module).items()
        if type(holder) in (dict, list) and name not in _TORCH
    ]
    try:
        yield
    finally:
        for holder, before in kept:
            holder.clear()
            (holder.update if isinstance(holder, dict) else holder.extend)(before)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode; after the block every module is as it was.

    Autocast keeps no weights that it casts inside the block: they may have no gradients, and a training
    step in the same autocast region would go on with them and lose its own.
    """
    modes = {module: module.training for module in model.modules()}
    cached = torch.is_autocast_cache_enabled()
    model.eval()
    torch.set_autocast_cache_enabled(False)
    try:
        with containers_restored(model):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
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
    with gradients_required(parameters, True), torch.enable_grad():
        yield

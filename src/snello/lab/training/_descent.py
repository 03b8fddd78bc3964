"""The plain training loop: epochs of steps on a loss that the caller measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import DivergenceError


def descend(
    model: nn.Module,
    batches: Any,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epochs: int,
    measure: Callable[[Any], tuple[Tensor, int]],
    *,
    end: Callable[[int, float], object] | None = None,
    where: str = ":",
) -> None:
    """Train a network in place, with a step of the optimizer and of its schedule for every batch.

    Args:
        model: put into training mode at the start of every epoch.
        batches: a DataLoader whose sampler has `set_epoch`.
        optimizer: of the network's parameters.
        schedule: of the optimizer's learning rate.
        epochs: passes over the batches.
        measure: batch -> its loss, a scalar with gradients, and its number of samples.
        end: called after each epoch with its number, from 1, and its mean loss.
        where: text between the epoch's number and the advice in the error.

    Raises:
        DivergenceError: if the loss is not finite.
    """
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        model.train()
        total, count = 0.0, 0
        for batch in batches:
            loss, samples = measure(batch)
            if not torch.isfinite(loss):
                raise DivergenceError(
                    f"the loss is {float(loss)} in epoch {epoch + 1}{where} lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total, count = total + float(loss.detach()) * samples, count + samples
        if end is not None:
            end(epoch + 1, total / max(count, 1))

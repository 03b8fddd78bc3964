"""Learning rate as a closed-form function of the epoch, without scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from snello.lab.recipes import OptimizerConfig


def lr_factor(config: OptimizerConfig, epoch: float, epochs: int) -> float:
    """The learning rate at a given epoch, relative to `config.lr`.

    Args:
        config: optimizer and schedule.
        epoch: number of epochs trained so far, may be fractional.
        epochs: number of epochs of the whole training.

    Returns:
        A factor in [0, 1]. During `warmup_epochs` it rises linearly to 1; "poly" and "cosine"
        then fall to 0 over the remaining epochs, while "step" and "multistep" count epochs from the
        start of training.
    """
    warmup = config.warmup_epochs
    if epoch < warmup:
        return epoch / warmup
    # The tolerance keeps rounding from delaying a milestone by one step.
    whole = math.floor(epoch + 1e-9)
    if config.schedule == "multistep":
        return math.prod(config.gamma for milestone in config.milestones if milestone <= whole)
    if config.schedule == "step":
        return math.prod(config.gamma for _ in range(whole // config.step_size))
    # torch asks once more behind the last step, where all may have been warm-up.
    done = min((epoch - warmup) / max(epochs - warmup, 1), 1.0)
    if config.schedule == "poly":
        return float((1 - done) ** config.power)
    return (1 + math.cos(math.pi * done)) / 2


def moves_within_epochs(config: OptimizerConfig) -> bool:
    """Return True if the learning rate changes between the steps of an epoch."""
    return config.warmup_epochs > 0 or config.schedule in ("poly", "cosine")


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a model; an auxiliary classifier gets its own parameter group."""
    aux = getattr(model, "aux_classifier", None)
    apart = {id(p) for p in aux.parameters()} if isinstance(aux, nn.Module) else set()
    if config.aux_lr_factor == 1:
        apart = set()
    groups: list[dict[str, object]] = [
        {"params": [p for p in model.parameters() if id(p) not in apart]}
    ]
    if apart:
        faster = config.lr * config.aux_lr_factor
        groups.append({"params": [p for p in model.parameters() if id(p) in apart], "lr": faster})
    if config.name == "AdamW":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def build_scheduler(
    config: OptimizerConfig,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    steps_per_epoch: float,
    moment: Callable[[], float] | None = None,
) -> dict[str, object]:
    """Build the schedule for Lightning, updated per step or, if sufficient, per epoch.

    Args:
        config: optimizer and schedule.
        optimizer: made by `build_optimizer`.
        epochs: of the whole training.
        steps_per_epoch: steps of the first epoch.
        moment: number of epochs trained so far, for epochs of different lengths; None: all epochs
            have `steps_per_epoch` steps.
    """
    if not moves_within_epochs(config):
        by_epoch = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda e: lr_factor(config, e, epochs)
        )
        return {"scheduler": by_epoch, "interval": "epoch"}

    def at_step(step: int) -> float:
        # Without the offset the first step of a warm-up would have a learning rate of zero.
        if moment is not None:
            trained = moment()
            ahead = 1 if trained < config.warmup_epochs else 0
            return lr_factor(config, trained + ahead / steps_per_epoch, epochs)
        ahead = 1 if step < config.warmup_epochs * steps_per_epoch else 0
        return lr_factor(config, (step + ahead) / steps_per_epoch, epochs)

    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, at_step), "interval": "step"}

"""Fine-tuning of a pruned network in a plain loop, without callbacks that hold old parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from snello.errors import ConfigError
from snello.graph import scores_of
from snello.lab.datasets import Splits, loader
from snello.pruning.recovery import FeatureDistillation, distillation

from ._descent import descend
from ._device import warn_if_emulated


@dataclass(frozen=True)
class FineTuning:
    """Settings of a fine-tuning with a cosine schedule.

    Attributes:
        epochs: number of passes over the training images.
        lr: peak learning rate.
        batch_size: images per step.
        weight_decay: weight decay of every parameter.
        warmup: share of the steps during which the learning rate rises, in [0, 1).
        distil: weight of the distillation loss against the dense network, in [0, 1]; the
            cross-entropy has the weight 1 - distil.
        temperature: softmax temperature of the distillation.
        features: names of modules whose attention maps are to be like the dense network's; see
            [`FeatureDistillation`][snello.pruning.recovery.FeatureDistillation].
        feature_weight: weight of that distance, positive.
        augment: "crop-flip" or "none"; a mirrored digit is none.
        precision: "32", or "bf16" for torch.autocast in bfloat16.
        limit: number of training images; None: all.
        seed: seed of batch order, augmentation and dropout.
        optimizer: "SGD" with Nesterov momentum 0.9, or "AdamW", which transformers need.

    Raises:
        ConfigError: for a value outside its range.
    """

    epochs: int = 5
    lr: float = 0.01
    batch_size: int = 128
    weight_decay: float = 5e-4
    warmup: float = 0.05
    distil: float = 0.0
    temperature: float = 4.0
    features: tuple[str, ...] = ()
    feature_weight: float = 1000.0
    augment: Literal["none", "crop-flip"] = "crop-flip"
    precision: Literal["32", "bf16"] = "32"
    limit: int | None = None
    seed: int = 0
    optimizer: Literal["SGD", "AdamW"] = "SGD"

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ConfigError(f"epochs must be at least 0, not {self.epochs}")
        if self.optimizer not in ("SGD", "AdamW"):
            raise ConfigError(f'the optimizer is "SGD" or "AdamW", not {self.optimizer!r}')
        if not self.lr > 0:
            raise ConfigError(f"the learning rate must be positive, not {self.lr}")
        if not 0 <= self.distil <= 1:
            raise ConfigError(f"distil is a weight in [0, 1], not {self.distil}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a share in [0, 1), not {self.warmup}")
        for name in ("feature_weight", "temperature", "batch_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)}")


def finetune(
    model: nn.Module,
    splits: Splits,
    settings: FineTuning,
    *,
    teacher: nn.Module | None = None,
    report: Callable[[int, float], object] | None = None,
) -> nn.Module:
    """Train a network on a dataset, in place.

    Args:
        model: network, on the device to train on; maps images (B, channels, H, W) to logits (B, C).
        splits: the dataset.
        settings: settings of the training.
        teacher: the dense network for distillation, in evaluation mode and on the same device.
        report: called after each epoch with its number, from 1, and its mean loss.

    Returns:
        The same network, in evaluation mode.

    Raises:
        ConfigError: if `distil` is positive, or `features` are named, without a teacher.
        DivergenceError: if the loss becomes NaN or infinite.
    """
    if (settings.distil or settings.features) and teacher is None:
        raise ConfigError("distil needs a teacher: pass the network before pruning as teacher=")
    alike = _features(model, teacher, settings)
    device = next(model.parameters()).device
    if settings.precision == "bf16":
        warn_if_emulated(device.type)
    batches, optimizer = batches_and_optimizer(model, splits, settings)
    steps = max(1, settings.epochs * len(batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _factor(step / steps, settings.warmup)
    )
    torch.manual_seed(settings.seed)

    def measure(batch: Any) -> tuple[torch.Tensor, int]:
        images, labels = _laid_out(batch[0].to(device)), batch[1].to(device)
        with _autocast(settings, device):
            loss = _loss(scores_of(model(images)), images, labels, settings, teacher)
            if alike is not None:
                loss = loss + settings.feature_weight * alike.loss()
            return loss, len(labels)

    try:
        descend(
            model, batches, optimizer, schedule, settings.epochs, measure, end=report,
            where=" of fine-tuning;",
        )  # fmt: skip
    finally:
        if alike is not None:
            alike.remove()
    return model.eval()


def augmentation_for(splits: Splits) -> Literal["none", "crop-flip"]:
    """The augmentation for images of which nothing else is known.

    Grey images are mostly characters, which are others when mirrored: they are left as they are.
    """
    return "none" if splits.input_shape[0] == 1 else "crop-flip"


def batches_and_optimizer(
    model: nn.Module, splits: Splits, settings: FineTuning
) -> tuple[Any, torch.optim.Optimizer]:
    """The training batches and the optimizer of a fine-tuning."""
    batches = loader(
        splits.train, splits, settings.batch_size, shuffle=True, seed=settings.seed,
        augment=settings.augment, limit=settings.limit,
    )  # fmt: skip
    if settings.optimizer == "AdamW":
        return batches, torch.optim.AdamW(
            model.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
    return batches, torch.optim.SGD(
        model.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay,
        nesterov=True,
    )  # fmt: skip


def _features(
    model: nn.Module, teacher: nn.Module | None, settings: FineTuning
) -> FeatureDistillation | None:
    if teacher is None or not settings.features:
        return None
    return FeatureDistillation(model, teacher, list(settings.features))


def _loss(
    outputs: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    settings: FineTuning,
    teacher: nn.Module | None,
) -> torch.Tensor:
    outputs = outputs.float()
    hard = F.cross_entropy(outputs, labels)
    if teacher is None:
        return hard
    with torch.no_grad():  # it runs for its features, too
        wanted = scores_of(teacher(images)).float()
    if not settings.distil:
        return hard
    soft = distillation(outputs, wanted, temperature=settings.temperature)
    return settings.distil * soft + (1 - settings.distil) * hard


def _factor(done: float, warmup: float) -> float:
    if done < warmup:
        return max(done / warmup, 0.01)
    rest = (done - warmup) / (1 - warmup)
    return 0.5 * (1 + float(torch.cos(torch.tensor(rest * torch.pi))))


def _laid_out(images: torch.Tensor) -> torch.Tensor:
    """Images in channels-last layout, in which convolutions are fastest; weights keep theirs."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def _autocast(settings: FineTuning, device: torch.device) -> Any:
    if settings.precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()

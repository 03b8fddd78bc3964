"""A short training that is recorded, to look at the samples of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.curation import RandomSubset, Recorder, Recording
from snello.errors import DataError, DivergenceError
from snello.graph import scores_of
from snello.lab.datasets import Splits, loader

from ._descent import descend
from ._finetune import FineTuning


@dataclass(frozen=True, eq=False)
class Curated:
    """The samples of a training part as a network saw them.

    Attributes:
        recording: of the training.
        features: inputs of the network's last linear layer after it, float32 `(N, F)`; of a
            network without one, its outputs.
    """

    recording: Recording
    features: Tensor


def record_training(
    model: nn.Module,
    splits: Splits,
    settings: FineTuning,
    report: Callable[[int, float], object] | None = None,
) -> Curated:
    """Train a classifier on all samples in every epoch, and record it.

    Args:
        model: on the device where it is to be trained.
        splits: the dataset.
        settings: epochs, learning rate with a cosine schedule, batch size, augmentation, limit.
        report: called after each epoch with its number, from 1, and its mean loss.

    Raises:
        DataError: for segmentation, whose samples have no label.
        DivergenceError: if the loss, or a feature of the trained network, is not finite.
    """
    if splits.task != "classification":
        raise DataError(f"{splits.name} has a label per pixel: the scores need one label per image")
    device = next(model.parameters()).device
    everything = partial(RandomSubset, ratio=0.0, seed=settings.seed)
    batches = loader(
        splits.train, splits, settings.batch_size, shuffle=True, seed=settings.seed,
        augment=settings.augment, limit=settings.limit, curate=everything,
    )  # fmt: skip
    recorder = Recorder(len(batches.dataset))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay
    )
    steps = max(1, settings.epochs * len(batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(settings.seed)

    def measure(batch: Any) -> tuple[Tensor, int]:
        (images, labels), index = batch
        outputs, labels = scores_of(model(images.to(device))).float(), labels.to(device)
        recorder.record(outputs, labels, index)
        return F.cross_entropy(outputs, labels), len(labels)

    def end(epoch: int, loss: float) -> None:
        recorder.step()
        if report is not None:
            report(epoch, loss)

    descend(model, batches, optimizer, schedule, settings.epochs, measure, end=end)
    plain = loader(splits.train, splits, settings.batch_size, limit=settings.limit)
    features = _features(model.eval(), plain, device)
    if not features.isfinite().all():  # the last step may have been too large: no loss follows it
        raise DivergenceError(
            f"the features of the trained network are not finite: lower the learning rate, {settings.lr:g}"
        )
    return Curated(recorder.recording(), features)


@torch.no_grad()
def _features(model: nn.Module, batches: Any, device: torch.device) -> Tensor:
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].detach().flatten(1).float().cpu())

    hook = heads[-1].register_forward_pre_hook(keep) if heads else None
    try:
        for images, _ in batches:
            outputs = scores_of(model(images.to(device)))
            if hook is None:
                found.append(outputs.flatten(1).float().cpu())
    finally:
        if hook is not None:
            hook.remove()
    return torch.cat(found)

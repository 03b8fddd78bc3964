"""Fine-tuning of a trained network with resting layers and cached features, beside a plain one."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.equilibrium import FeatureCache, Prefix, SelectiveUpdate
from snello.graph import scores_of
from snello.lab.datasets import DataSplits, Splits, loader
from snello.lab.recipes import Recipe
from snello.store import load
from snello.timing import now

from ._data import Batches
from ._device import device_of
from ._distributed import World
from ._evaluate import evaluate
from ._result import MODEL
from ._schedule import build_optimizer

EPOCHS, IMAGES = 8, 2000


@dataclass(frozen=True)
class FineTunedRow:
    """One of the two fine-tunings.

    Attributes:
        method: "plain" (every layer is trained) or "resting" (all but the classifier rest, and
            their outputs are cached).
        test_accuracy: test accuracy after it, in [0, 1].
        seconds: wall-clock seconds of its epochs, with everything included; those of the two are
            trained in turns.
        epoch_ms: median wall-clock time of an epoch in milliseconds.
        note: why no features were cached; empty if they were.
    """

    method: str
    test_accuracy: float
    seconds: float
    epoch_ms: float
    note: str = ""


@dataclass
class _Tuning:
    """A model in fine-tuning, on images in memory."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer
    forward: Callable[[Tensor, Tensor], Any]
    seconds: list[float] = field(default_factory=list)
    prepared: float = 0.0

    def epoch(self, order: Tensor, batch: int) -> None:
        began = now(self.images.device)
        self.model.train()
        for index in order.split(batch):  # type: ignore[no-untyped-call]
            outputs = scores_of(self.forward(self.images[index], index))
            loss = F.cross_entropy(outputs, self.labels[index])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.seconds.append(now(self.images.device) - began)


def compare_finetuning(
    recipe: Recipe, folder: Path, splits: Splits, epochs: int = EPOCHS
) -> tuple[FineTunedRow, ...]:
    """Fine-tune a trained network twice on the same images without augmentation, in turns.

    It runs on the recipe's device.

    Args:
        recipe: the recipe with which it was trained; the learning rate is a tenth of its own.
        folder: folder of the trained network.
        splits: the dataset; at most the first 2 000 training images are used.
        epochs: number of epochs.

    Returns:
        A row each, plain first; none for streamed images and other tasks than classification, whose
        samples are augmented at random.
    """
    if not isinstance(splits, DataSplits) or splits.task != "classification":
        return ()
    model, _ = load(folder / MODEL, trust=recipe.model.name)
    device = device_of(recipe)
    model.to(device)
    images, labels = (part.to(device) for part in _in_memory(recipe, splits))
    plain = _tuning(recipe, copy.deepcopy(model), images, labels)
    resting = _tuning(recipe, model, images, labels)
    random = torch.Generator().manual_seed(recipe.seed)
    with _at_rest(resting) as cache:
        # In turns, so that a busy machine slows both down alike.
        for number in range(epochs):
            order = torch.randperm(len(images), generator=random).to(device)
            for tuning in (plain, resting) if number % 2 else (resting, plain):
                # Dropout, like the order, depends neither on the other one nor on what ran before.
                torch.manual_seed(recipe.seed + number)
                tuning.epoch(order, recipe.data.batch_size)
        note = cache.status.reason or ""
    test = Batches(recipe, splits, World()).test
    return (_row("plain", plain, test), _row("resting", resting, test, note))


def _in_memory(recipe: Recipe, splits: DataSplits) -> tuple[Tensor, Tensor]:
    """The first training images, without augmentation, and their labels."""
    batches = loader(splits.train, splits, 500, limit=min(recipe.data.limit or IMAGES, IMAGES))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def _tuning(recipe: Recipe, model: nn.Module, images: Tensor, labels: Tensor) -> _Tuning:
    optimizer = build_optimizer(recipe.optimizer, model)
    for group in optimizer.param_groups:
        group["lr"] *= 0.1
    return _Tuning(model, images, labels, optimizer, lambda images, _index: model(images))


@contextmanager
def _at_rest(tuning: _Tuning) -> Iterator[FeatureCache]:
    """Let all layers but the classifier rest, and cache their outputs, inside the block."""
    began = now(tuning.images.device)
    update = SelectiveUpdate(tuning.model, tuning.optimizer, tuning.images[:2], Prefix(1.0))
    # Not by step(), for which the other processes of a training would have to wait, too.
    update.apply({name: torch.ones_like(mask) for name, mask in update.frozen.items()})
    # In files, features would have to be copied to a GPU for each batch.
    on_gpu = tuning.images.device.type != "cpu"
    cache = FeatureCache(update, len(tuning.images), in_memory=on_gpu)
    tuning.forward = cache
    tuning.prepared = now(tuning.images.device) - began
    try:
        yield cache
    finally:
        cache.close()
        update.remove()


def _row(method: str, tuning: _Tuning, test: Any, note: str = "") -> FineTunedRow:
    accuracy = evaluate(tuning.model, test).accuracy
    seconds = tuning.prepared + sum(tuning.seconds)
    return FineTunedRow(method, accuracy, seconds, 1e3 * statistics.median(tuning.seconds), note)

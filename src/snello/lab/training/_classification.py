"""The task of image classification."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from snello.curation import DynamicSubset
from snello.errors import ConfigError
from snello.graph import scores_of
from snello.lab.recipes import OptimizerConfig

from ._task import Task


class Classification(Task):
    """Cross-entropy training of an image classifier.

    Logs `train_loss`, `val_loss`, `val_accuracy`, `test_loss` and `test_accuracy`.

    Args:
        model: maps images (B, channels, H, W) to logits (B, C), or to a mapping or an object that
            holds them as `"logits"`, as models of Hugging Face do.
        classes: number of classes, C.
        optimizer: optimizer and schedule.
        channels_last: use the channels-last memory format for the images.
        keep: the dynamic subset that batches come from, as pairs `(batch, index)`.

    Raises:
        ConfigError: for fewer than two classes.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerConfig,
        *,
        channels_last: bool = False,
        keep: DynamicSubset | None = None,
    ) -> None:
        super().__init__(model, optimizer, channels_last=channels_last, keep=keep)
        if classes < 2:
            raise ConfigError(f"classes={classes}: a classifier needs two classes or more")
        self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(classes, average="micro") for _ in range(2)
        )

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, C) and labels (B,)."""
        return F.cross_entropy(scores_of(outputs), labels)

    def losses(self, outputs: Any, labels: Tensor) -> Tensor:
        """Cross-entropy of each image, shape (B,)."""
        return F.cross_entropy(scores_of(outputs), labels, reduction="none")

    def evaluate(self, scores: Tensor, labels: Tensor, part: str) -> None:
        """Log loss and accuracy."""
        accuracy = self.val_accuracy if part == "val" else self.test_accuracy
        accuracy(scores, labels)
        loss = F.cross_entropy(scores.float(), labels)
        self.log(f"{part}_loss", loss, batch_size=len(labels), prog_bar=True, sync_dist=True)
        self.log(f"{part}_accuracy", accuracy, batch_size=len(labels), prog_bar=True)

"""The Lightning module: image classification."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from snello.curation import DynamicSubset
from snello.errors import ConfigError, DivergenceError
from snello.lab.recipes import OptimizerConfig

from ._schedule import build_optimizer, build_scheduler, moves_within_epochs


class Classification(L.LightningModule):
    """Cross-entropy training of an image classifier.

    Logs `train_loss`, `val_loss`, `val_accuracy`, `test_loss` and `test_accuracy`.

    Args:
        model: maps images (B, channels, H, W) to logits (B, C).
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
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes={classes}: a classifier needs two classes or more")
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._config, self.memory_format, self._keep = optimizer, memory_format, keep
        self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(classes, average="micro") for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, C)."""
        return self.model(images.to(memory_format=self.memory_format))  # type: ignore[no-any-return]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, C) and labels (B,)."""
        return F.cross_entropy(logits, labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            DivergenceError: if it is NaN or infinite.
        """
        if self._keep is None:
            images, labels = batch
            loss = self.loss(self(images), labels)
        else:
            (images, labels), index = batch
            losses = F.cross_entropy(self(images), labels, reduction="none")
            loss = self._keep.weigh(losses, index)
        return logged(self, loss, batch_idx, len(labels))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the validation part."""
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the test part."""
        self._evaluate(batch, "test", self.test_accuracy)

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], part: str, accuracy: MulticlassAccuracy
    ) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        loss = F.cross_entropy(logits.float(), labels)
        self.log(f"{part}_loss", loss, batch_size=len(labels), prog_bar=True, sync_dist=True)
        self.log(f"{part}_accuracy", accuracy, batch_size=len(labels), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule."""
        return configured(self._config, self.model, self.trainer, self._keep)


def logged(module: L.LightningModule, loss: Tensor, batch_idx: int, images: int) -> Tensor:
    """Log the loss of a training step as a mean over the epoch, and return it.

    Raises:
        DivergenceError: if it is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise DivergenceError(
            f"the training loss is {float(loss.detach())} at epoch {module.current_epoch + 1}, "
            f"step {batch_idx + 1}: lower optimizer.lr, or look for NaN or infinite values in the "
            "data"
        )
    module.log(
        "train_loss",
        loss,
        on_step=False,
        on_epoch=True,
        batch_size=images,
        prog_bar=True,
        sync_dist=True,
    )
    return loss


def configured(
    config: OptimizerConfig, model: nn.Module, trainer: L.Trainer, keep: DynamicSubset | None = None
) -> dict[str, Any]:
    """Result of `configure_optimizers`: the optimizer of a model and its schedule.

    Raises:
        ConfigError: if the schedule depends on the number of epochs and the trainer has no
            `max_epochs`.
    """
    optimizer, epochs = build_optimizer(config, model), trainer.max_epochs
    if not moves_within_epochs(config):
        return {"optimizer": optimizer, "lr_scheduler": build_scheduler(config, optimizer, 1, 1)}
    if epochs is None or epochs < 1:
        raise ConfigError(
            f"the schedule {config.schedule!r} needs a trainer with max_epochs, not {epochs}"
        )
    steps = trainer.estimated_stepping_batches / epochs
    moment = None if keep is None else lambda: keep.moment
    return {
        "optimizer": optimizer,
        "lr_scheduler": build_scheduler(config, optimizer, epochs, steps, moment),
    }

"""The Lightning module that all trainings share; its subclasses know the losses and metrics."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from snello.curation import DynamicSubset
from snello.errors import ConfigError, DivergenceError
from snello.graph import scores_of
from snello.lab.recipes import OptimizerConfig

from ._schedule import build_optimizer, build_scheduler, moves_within_epochs


class Task(L.LightningModule):
    """Training of a network on labelled images. It logs `train_loss`.

    Args:
        model: maps images (B, channels, H, W) to scores, or to a mapping or an object that holds them;
            see [`scores_of`][snello.graph.scores_of].
        optimizer: optimizer and schedule.
        channels_last: use the channels-last memory format for the images.
        keep: the dynamic subset that batches come from, as pairs `(batch, index)`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        *,
        channels_last: bool = False,
        keep: DynamicSubset | None = None,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self._config, self._keep = optimizer, keep

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            outputs: output of the model.
            labels: of B images.
        """
        raise NotImplementedError

    def losses(self, outputs: Any, labels: Tensor) -> Tensor:
        """The loss of each image, shape (B,)."""
        raise NotImplementedError

    def evaluate(self, scores: Tensor, labels: Tensor, part: str) -> None:
        """Log loss and metrics of a batch.

        Args:
            scores: of B images.
            labels: of the images.
            part: "val" or "test".
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """The scores of images (B, channels, H, W)."""
        return scores_of(self._outputs(images))

    def _outputs(self, images: Tensor) -> Any:
        return self.model(images.to(memory_format=self.memory_format))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            DivergenceError: if it is NaN or infinite.
        """
        if self._keep is None:
            images, labels = batch
            loss = self.loss(self._outputs(images), labels)
        else:
            (images, labels), index = batch
            loss = self._keep.weigh(self.losses(self._outputs(images), labels), index)
        if not torch.isfinite(loss):
            raise DivergenceError(
                f"the training loss is {float(loss.detach())} at epoch {self.current_epoch + 1}, "
                f"step {batch_idx + 1}: lower optimizer.lr, or look for NaN or infinite values in the "
                "data"
            )
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels),
            prog_bar=True, sync_dist=True,
        )  # fmt: skip
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and metrics on the validation part."""
        images, labels = batch
        self.evaluate(self(images), labels, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and metrics on the test part."""
        images, labels = batch
        self.evaluate(self(images), labels, "test")

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule.

        Raises:
            ConfigError: if the schedule depends on the number of epochs and the trainer has no
                `max_epochs`.
        """
        config, epochs, keep = self._config, self.trainer.max_epochs, self._keep
        optimizer = build_optimizer(config, self.model)
        if not moves_within_epochs(config):
            return {
                "optimizer": optimizer,
                "lr_scheduler": build_scheduler(config, optimizer, 1, 1),
            }
        if epochs is None or epochs < 1:
            raise ConfigError(
                f"the schedule {config.schedule!r} needs a trainer with max_epochs, not {epochs}"
            )
        steps = self.trainer.estimated_stepping_batches / epochs
        moment = None if keep is None else lambda: keep.moment
        return {
            "optimizer": optimizer,
            "lr_scheduler": build_scheduler(config, optimizer, epochs, steps, moment),
        }

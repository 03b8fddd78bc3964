"""The task of semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from snello.curation import DynamicSubset
from snello.graph import scores_of
from snello.lab.recipes import OptimizerConfig

from ._task import Task


class Segmentation(Task):
    """Cross-entropy training of a semantic segmentation network.

    As in torchvision's reference training, the auxiliary classifier's loss has the weight 0.5 and
    pixels of label 255 are ignored. Logs `train_loss`, `val_loss`, `val_miou`,
    `val_pixel_accuracy` and the same three metrics for the test part. The losses of evaluation
    are means over pixels; mIoU is the mean over classes of intersection over union, without the
    classes that are neither present nor predicted. Chen et al., "Rethinking atrous convolution for
    semantic image segmentation", 2017, https://arxiv.org/abs/1706.05587, train with the polynomial
    schedule, power 0.9:
    `OptimizerConfig(schedule="poly", aux_lr_factor=10)`.

    Args:
        model: maps images (B, 3, H, W) to scores (B, C, H, W), or to a mapping that holds them as
            `"out"` and optionally those of an auxiliary classifier as `"aux"`, as torchvision's
            networks do.
        classes: number of classes, C.
        optimizer: optimizer and schedule.
        aux_weight: weight of the auxiliary classifier's loss.
        ignored: label of the pixels to ignore.
        channels_last: use the channels-last memory format for the images.
        keep: the dynamic subset that batches come from, as pairs `(batch, index)`; the loss is
            then the mean over images of their mean over pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerConfig,
        *,
        aux_weight: float = 0.5,
        ignored: int = 255,
        channels_last: bool = False,
        keep: DynamicSubset | None = None,
    ) -> None:
        super().__init__(model, optimizer, channels_last=channels_last, keep=keep)
        self.aux_weight, self.ignored = aux_weight, ignored
        self.val_metrics, self.test_metrics = (
            _metrics(classes, ignored, part) for part in ("val", "test")
        )

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """Mean cross-entropy over pixels.

        Args:
            outputs: output of the model: scores (B, C, H, W), or a mapping with "out" and
                optionally "aux".
            labels: label maps (B, H, W).

        Returns:
            A scalar that includes the auxiliary loss; zero if every pixel is ignored.
        """
        return self._with_aux(outputs, labels, self._pixel_loss)

    def losses(self, outputs: Any, labels: Tensor) -> Tensor:
        """The loss of each image, its mean over pixels, shape (B,)."""
        return self._with_aux(outputs, labels, self._image_losses)

    def _with_aux(
        self, outputs: Any, labels: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        loss = loss_of(scores_of(outputs), labels)
        aux = outputs.get("aux") if isinstance(outputs, Mapping) else None
        return loss if aux is None else loss + self.aux_weight * loss_of(aux, labels)

    def _pixel_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        # If every pixel of a crop is ignored, the mean would be 0/0.
        return self._entropy(scores, labels, "sum") / self._counted(labels).clamp(min=1)

    def _image_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image, (B,)."""
        counted = (labels != self.ignored).flatten(1).sum(1)
        return self._entropy(scores, labels, "none").flatten(1).sum(1) / counted.clamp(min=1)

    def _entropy(self, scores: Tensor, labels: Tensor, reduction: str) -> Tensor:
        # Autocast may return bfloat16 scores, too coarse for a sum over pixels.
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return F.cross_entropy(scores, labels, ignore_index=self.ignored, reduction=reduction)

    def _counted(self, labels: Tensor) -> Tensor:
        return (labels != self.ignored).sum()

    def evaluate(self, scores: Tensor, labels: Tensor, part: str) -> None:
        """Log loss, mIoU and pixel accuracy."""
        metrics = self.val_metrics if part == "val" else self.test_metrics
        metrics.update(scores.argmax(1), labels)
        # Weighted by pixels: the number of labelled pixels differs between images.
        pixels = int(self._counted(labels))
        loss = self._pixel_loss(scores, labels)
        self.log(f"{part}_loss", loss, batch_size=pixels, prog_bar=True, sync_dist=True)
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=pixels, prog_bar=True)


def _metrics(classes: int, ignored: int, part: str) -> MetricCollection:
    return MetricCollection(
        {
            f"{part}_miou": MulticlassJaccardIndex(classes, ignore_index=ignored),
            f"{part}_pixel_accuracy": MulticlassAccuracy(
                classes, average="micro", ignore_index=ignored
            ),
        },
        compute_groups=False,
    )

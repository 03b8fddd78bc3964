"""Loss and accuracy of a network, computed without a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.errors import DataError
from snello.graph import evaluation, scores_of
from snello.lab.datasets import Splits
from snello.neurons import input_dtype


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy of a model on a set of images.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of correctly classified images, in [0, 1]; mean IoU for segmentation.
        images: number of images.
    """

    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True)
class Answers:
    """A classifier's answer to each image, in order.

    Attributes:
        labels: class of each image, int64 of shape `(N,)`.
        predicted: class with the largest output, likewise.
        loss: mean cross-entropy.
    """

    labels: Tensor
    predicted: Tensor
    loss: float

    @property
    def right(self) -> Tensor:
        """Mask of the correctly classified images, bool of shape `(N,)`."""
        return self.predicted == self.labels


def answers(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: bool | torch.dtype = False,
    channels_last: bool = False,
) -> Answers:
    """Classify every image of the batches; arguments and errors as for `evaluate`."""
    labels, predicted, loss = [], [], 0.0
    for logits, right in _answers(model, batches, autocast, channels_last):
        _check_labels(logits, right)
        loss += float(F.cross_entropy(logits, right, reduction="sum"))
        labels.append(right.cpu())
        predicted.append(logits.argmax(1).cpu())
    if not labels:
        raise DataError("there are no images to evaluate the model on")
    joined = torch.cat(labels)
    return Answers(joined, torch.cat(predicted), loss / len(joined))


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: bool | torch.dtype = False,
    channels_last: bool = False,
) -> Evaluation:
    """Measure a classifier in evaluation mode.

    Args:
        model: maps images (B, channels, H, W) to logits (B, C).
        batches: pairs of images (B, channels, H, W) and labels (B,).
        autocast: True runs the model under torch.autocast in bfloat16; a dtype selects another one.
        channels_last: use the channels-last memory format for the images.

    Raises:
        DataError: if there are no images, or a label exceeds the number of outputs.
    """
    found = answers(model, batches, autocast=autocast, channels_last=channels_last)
    images = len(found.labels)
    return Evaluation(found.loss, int(found.right.sum()) / images, images)


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or len(logits) != len(labels):
        raise DataError(
            f"the model gives outputs of shape {tuple(logits.shape)} for {len(labels)} images: "
            "expected one row of logits per image"
        )
    if len(labels) and not 0 <= (highest := int(labels.max())) < logits.shape[1]:
        raise DataError(
            f"the data contain the label {highest}, but the model has {logits.shape[1]} outputs: "
            "use the dataset that it was trained on"
        )


def evaluate_segmentation(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    *,
    ignored: int = 255,
    autocast: bool | torch.dtype = False,
    channels_last: bool = False,
) -> Evaluation:
    """Measure a segmentation network in evaluation mode.

    Args:
        model: maps images (B, channels, H, W) to scores (B, C, H, W), or to a mapping that holds
            them as "out".
        batches: pairs of images and label maps (B, H, W).
        classes: number of classes, C.
        ignored: label of the pixels to ignore.
        autocast: as for [`evaluate`][snello.lab.training.evaluate].
        channels_last: as for [`evaluate`][snello.lab.training.evaluate].

    Returns:
        The mean cross-entropy per pixel and, as accuracy, the mean over classes of intersection
        over union (mIoU). Classes that are neither present nor predicted are left out of the mean.

    Raises:
        DataError: if every pixel is ignored.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    loss, images = 0.0, 0
    for scores, labels in _answers(model, batches, autocast, channels_last):
        loss += float(F.cross_entropy(scores, labels, ignore_index=ignored, reduction="sum"))
        seen = labels != ignored
        pairs = labels[seen] * classes + scores.argmax(1)[seen]
        confusion += torch.bincount(pairs.cpu(), minlength=classes**2).view(classes, classes)
        images += len(labels)
    if not confusion.any():
        raise DataError(
            "every pixel is ignored: there is no labelled pixel to evaluate the model on"
        )
    both = confusion.diagonal().double()
    either = confusion.sum(0) + confusion.sum(1) - both
    return Evaluation(
        loss / int(confusion.sum()), float((both / either)[either > 0].mean()), images
    )


def evaluate_on(
    splits: Splits,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: bool | torch.dtype = False,
    channels_last: bool = False,
) -> Evaluation:
    """Measure a network for the task of a dataset, as `evaluate` or `evaluate_segmentation`."""
    how: dict[str, Any] = {"autocast": autocast, "channels_last": channels_last}
    if splits.task == "segmentation":
        return evaluate_segmentation(model, batches, len(splits.classes), **how)
    return evaluate(model, batches, **how)


def _answers(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: bool | torch.dtype,
    channels_last: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield scores in float32 or float64 with labels on the same device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    own = input_dtype(model)
    dtype = autocast if isinstance(autocast, torch.dtype) else torch.bfloat16
    for images, labels in batches:
        # While this generator is suspended, mode and autocast must not leak into the caller.
        with evaluation(model), torch.autocast(device.type, dtype, enabled=bool(autocast)):
            scores = scores_of(model(images.to(device, own, memory_format=memory_format)))
        yield scores.float(), labels.to(device)

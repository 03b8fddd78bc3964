"""Loss and accuracy of a classifier, outside of any trainer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.errors import DataError
from snello.graph import evaluation


@dataclass(frozen=True)
class Evaluation:
    """What a model achieves on some images.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of images classified rightly, in [0, 1].
        images: how many there were.
    """

    loss: float
    accuracy: float
    images: int


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: bool = False,
    channels_last: bool = False,
) -> Evaluation:
    """Measure a classifier in evaluation mode.

    Args:
        model: maps images (B, channels, H, W) to logits (B, C).
        batches: pairs of images and labels.
        autocast: compute in bfloat16 where torch's autocast does.
        channels_last: memory format of the images.

    Raises:
        DataError: if there is no image.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    loss, right, total = 0.0, 0, 0
    with evaluation(model), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for images, labels in batches:
            labels = labels.to(device)
            logits = model(images.to(device, memory_format=memory_format)).float()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
            total += len(labels)
    if not total:
        raise DataError("there are no images to evaluate the model on")
    return Evaluation(loss / total, right / total, total)

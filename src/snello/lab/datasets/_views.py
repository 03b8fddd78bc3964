"""Transforms of streamed images, as in torchvision's reference scripts."""

from __future__ import annotations

from typing import Any

from snello.errors import require

from ._types import IGNORED, StreamedSplits


def view(splits: StreamedSplits, augment: str) -> Any:
    """Build a transform from a PIL image (and a mask) to uint8 tensors.

    Args:
        splits: the dataset, which determines the task, the crop and the size in evaluation.
        augment: ``"none"`` or ``"crop-flip"``.

    Returns:
        A picklable torchvision transform. For classification it takes the image alone;
        ``"crop-flip"`` crops 8 … 100 % of its area at an aspect ratio of 3/4 … 4/3, resizes the
        crop and flips it horizontally with probability 1/2. For segmentation it takes image and
        mask; ``"crop-flip"`` scales the shorter side to 0.5 … 2 times ``splits.resize``, flips with
        probability 1/2 and takes a random crop. Smaller images are padded with black and label 255.
    """
    v2 = require("torchvision.transforms.v2", "train", f"streaming {splits.name}")
    side, random = splits.input_shape[1], augment != "none"
    if splits.task == "segmentation":
        return _scale_crop(v2, side, splits.resize) if random else _scale(v2, splits.resize)
    if random:
        steps = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(splits.resize), v2.CenterCrop(side)]
    return v2.Compose([*steps, v2.PILToTensor()])


def _scale(v2: Any, resize: int) -> Any:
    return v2.Compose([v2.Resize(resize), v2.PILToTensor()])


def _scale_crop(v2: Any, side: int, resize: int) -> Any:
    tensors = require("torchvision.tv_tensors", "train", "cropping masks")
    padding = {tensors.Image: 0, tensors.Mask: IGNORED}
    return v2.Compose(
        [
            v2.RandomResize(resize // 2, 2 * resize),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.RandomCrop(side, pad_if_needed=True, fill=padding),
        ]
    )

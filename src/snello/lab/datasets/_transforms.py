"""Transforms of streamed images, as in torchvision's reference scripts."""

from __future__ import annotations

from typing import Any

from snello.errors import require

from ._types import IGNORED, StreamedSplits


def image_transform(splits: StreamedSplits, augment: str) -> Any:
    """Build a transform from a PIL image (and a `tv_tensors.Mask`) to uint8 tensors.

    Args:
        splits: the dataset: its task, its `input_shape` (C, side, side) for the crop and
            `resize`, the shorter side, are used.
        augment: `"none"` or `"crop-flip"`; checked by the loader.

    Returns:
        A picklable torchvision transform. `"none"` resizes the shorter side to `resize`; for
        classification it crops the centre, for segmentation images keep their own sizes.
        `"crop-flip"` for classification crops 8 … 100 % of the area at an aspect ratio of
        3/4 … 4/3, resizes the crop and flips it horizontally with probability 1/2; for segmentation
        it scales the shorter side to 0.5 … 2 times `resize`, flips with probability 1/2 and takes
        a random crop. Smaller images are padded with black and label 255.
    """
    v2 = require("torchvision.transforms.v2", "train", f"streaming {splits.name}")
    side, augmented = splits.input_shape[1], augment != "none"
    if splits.task == "segmentation":
        return _scale_crop(v2, side, splits.resize) if augmented else _scale(v2, splits.resize)
    if augmented:
        steps = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(splits.resize), v2.CenterCrop(side)]
    return v2.Compose([*steps, v2.PILToTensor()])


def _scale(v2: Any, resize: int) -> Any:
    """Evaluation of segmentation: the whole image, so that sizes differ between images."""
    return v2.Compose([v2.Resize(resize), v2.PILToTensor()])


def _scale_crop(v2: Any, side: int, resize: int) -> Any:
    tensors = require("torchvision.tv_tensors", "train", "cropping masks")
    # RandomCrop looks the fill up by type: the image has to be a tv_tensors.Image before it.
    padding = {tensors.Image: 0, tensors.Mask: IGNORED}
    return v2.Compose(
        [
            v2.RandomResize(resize // 2, 2 * resize),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.RandomCrop(side, pad_if_needed=True, fill=padding),
        ]
    )

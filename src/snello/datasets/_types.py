"""What a dataset is once it is in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snello.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images and their labels.

    Attributes:
        pixels: uint8, shape ``(N, C, H, W)``, 0 … 255.
        labels: int64, shape ``(N,)``, indices of classes.

    Raises:
        DataError: for other types or shapes.
    """

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise DataError(
                f"pixels must be uint8 of shape (N, C, H, W), got {pixels.dtype} of shape "
                f"{tuple(pixels.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]:
            raise DataError(
                f"labels must be int64 of shape ({len(pixels)},), one per image, "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Images({len(self)} of {'×'.join(map(str, self.pixels.shape[1:]))})"

    def subset(self, indices: Tensor) -> Images:
        """The images at the given indices (int64, 1-D), copied, in that order."""
        return Images(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A dataset, cut into parts that share no image.

    Attributes:
        name: the name it was loaded by.
        train: what the weights are learnt from.
        validation: what thresholds and stopping times are chosen on.
        test: what accuracy is reported on.
        classes: name of each class, by label.
        mean: per channel, of the training part, pixels scaled to 0 … 1.
        std: population standard deviation per channel, likewise; 1 for a channel without any variation.
        source: where the images were read from.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


@dataclass(frozen=True, eq=False)
class RawData:
    """A dataset as its files have it; ``validation`` where the files bring their own."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    source: str
    validation: Images | None = None

"""Types of datasets: in memory, or streamed from their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from snello.errors import DataError

from ._texts import Texts

Task = Literal["classification", "segmentation"]
Order = Literal["rgb", "bgr", "grey"]

IGNORED = 255
"""Label of pixels without a class: borders, overlaps and padding."""


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images and their labels.

    Attributes:
        pixels: uint8, shape `(N, C, H, W)`, 0 … 255.
        labels: int64, shape `(N,)`, class indices.
        files: path of each image that was read from a file of its own; None for other datasets.

    Raises:
        DataError: for other dtypes or shapes.
    """

    pixels: Tensor
    labels: Tensor
    files: Texts | None = None

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
        files = None if self.files is None else self.files.subset(indices)
        return Images(self.pixels[indices], self.labels[indices], files)


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A dataset in memory, split into disjoint parts.

    Attributes:
        name: name of the dataset.
        train: images to train on.
        validation: images to choose thresholds and stopping times on.
        test: images to report accuracy on.
        classes: names of the classes, by label.
        mean: mean per channel of the training part, with pixels scaled to 0 … 1.
        std: population standard deviation per channel, on the same scale; 1 for a constant channel.
        source: path or package that the images were read from.
        order: order of the channels of coloured images in a batch.
        apart: True if the validation part has files of its own, False if it was cut from the
            training images.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""
    order: Order = "rgb"
    apart: bool = False

    @property
    def colours(self) -> Order:
        """Channels of a batch, in order."""
        return "grey" if self.input_shape[0] == 1 else self.order

    @property
    def task(self) -> Task:
        """`"classification"`: datasets in memory have one class per image."""
        return "classification"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


class MaskSource(Protocol):
    """Source of the masks of a streamed part; must be picklable, for worker processes."""

    def __len__(self) -> int: ...

    def mask(self, index: int, height: int, width: int) -> Tensor:
        """The class of each pixel of an image: uint8, `(height, width)`, 255 for none."""
        ...

    def subset(self, indices: Tensor) -> MaskSource:
        """The masks at the given indices (int64, 1-D), in that order."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class StreamedImages:
    """Images that are decoded from their files when a batch is loaded.

    Attributes:
        files: path of each image.
        targets: for classification the labels, int64 of shape `(N,)`; for segmentation the masks.

    Raises:
        DataError: if the numbers of files and targets differ.
    """

    files: Texts
    targets: Tensor | MaskSource

    def __post_init__(self) -> None:
        if len(self.files) != len(self.targets):
            raise DataError(
                f"{len(self.files)} images have {len(self.targets)} targets; each needs one"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"StreamedImages({len(self)})"

    @property
    def labels(self) -> Tensor:
        """Class of every image, int64, shape `(N,)`.

        Raises:
            DataError: for segmentation, which has a label per pixel.
        """
        if not isinstance(self.targets, Tensor):
            raise DataError(
                "images with segmentation masks have no labels; a loader gives their masks"
            )
        return self.targets

    def subset(self, indices: Tensor) -> StreamedImages:
        """The images at the given indices (int64, 1-D), in that order; no file is opened."""
        targets = self.targets
        chosen = targets[indices] if isinstance(targets, Tensor) else targets.subset(indices)
        return StreamedImages(self.files.subset(indices), chosen)


@dataclass(frozen=True, eq=False)
class StreamedSplits:
    """A dataset streamed from files, split into disjoint parts.

    It has the attributes of [`DataSplits`][snello.lab.datasets.DataSplits];
    [`snello.lab.datasets.loader`][] accepts both.

    Attributes:
        name, train, validation, test, classes, mean, std, source: as in
            [`DataSplits`][snello.lab.datasets.DataSplits]. The statistics are those of ImageNet,
            which pretrained networks expect; for segmentation, the classes include the background.
        task: `"classification"` or `"segmentation"`.
        input_shape: `(C, H, W)` of a cropped training image.
        resize: length in pixels of an image's shorter side in evaluation. For classification, the
            image is then centre-cropped to `input_shape`; for segmentation it is not cropped.
        order: order of the channels in a batch.
        apart: as in [`DataSplits`][snello.lab.datasets.DataSplits].
    """

    name: str
    train: StreamedImages
    validation: StreamedImages
    test: StreamedImages
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    task: Task
    input_shape: tuple[int, int, int]
    resize: int
    order: Order = "rgb"
    apart: bool = False

    @property
    def colours(self) -> Order:
        """Channels of a batch, in order."""
        return self.order


Part = Images | StreamedImages
"""One part of a dataset, in memory or in files."""

Splits = DataSplits | StreamedSplits
"""A dataset, in memory or in files: both have the same attributes."""


@dataclass(frozen=True, eq=False)
class RawData:
    """A dataset as stored in its files; `validation` is None if the files do not define it."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    source: str
    validation: Images | None = None


@dataclass(frozen=True, eq=False)
class RawStream:
    """A streamed dataset as stored in files; `validation` is None if they do not define it."""

    train: StreamedImages
    test: StreamedImages
    classes: tuple[str, ...]
    source: str
    task: Task
    validation: StreamedImages | None = None

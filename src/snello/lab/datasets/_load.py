"""Datasets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import torch

from snello.errors import ConfigError, require

from ._cifar import read_cifar10, read_cifar100
from ._coco import read_coco
from ._folders import TEST_SHARE, read_image_folder
from ._masks import read_mask_folder
from ._places import Request, missing, roots
from ._splits import channel_statistics, cut_out, resized
from ._streamed import read_imagenet, stream_image_folder
from ._torchvision import from_torchvision
from ._types import (
    DataSplits,
    Images,
    RawData,
    RawStream,
    Splits,
    StreamedSplits,
    Task,
)

MNIST_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation per channel that every pretrained network of torchvision expects."""

_STREAMED_SIZES: dict[Task, tuple[int, int]] = {
    "classification": (224, 256),
    "segmentation": (480, 520),
}
"""Side of a crop, and shorter side of an image in evaluation, as in torchvision's reference scripts."""


def dataset_names() -> tuple[str, ...]:
    """The names that :func:`load_dataset` knows."""
    return tuple(_READERS)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    download: bool = False,
    path: str | Path | None = None,
) -> Splits:
    """Find a dataset and cut it into training, validation and test parts.

    Args:
        name: in memory ``"digits"`` (1 797 images of 8×8, comes with scikit-learn), ``"mnist"``,
            ``"cifar10"``, ``"cifar100"`` and ``"imagefolder"``; streamed from their files
            ``"imagenet"``, ``"coco"`` (segmentation into the 21 classes of Pascal VOC),
            ``"imagefolder-stream"`` and ``"maskfolder"``.
        root: folder that holds the dataset: ``root/MNIST/raw``, ``root/cifar-10-batches-py``,
            ``root/cifar10-jpeg/{train,test}/CLASS/*.jpg``,
            ``root/cifar10/{train,test}/CLASS/*.jpg``, ``root/cifar10-jpeg.tar.gz``,
            ``root/cifar-100-python``, ``root/imagenet/{train,val}/n01440764/*.JPEG`` or
            ``root/coco`` with ``train2017``, ``val2017`` and
            ``annotations/instances_{train,val}2017.json``; for the last two, ``root`` may be that
            folder itself. None looks in the folders of the environment variable SNELLO_DATA
            (several are separated as in PATH), else in ``./data``.
        validation: share of the training images that becomes the validation part, in (0, 1); of
            every class, except for segmentation. A folder of images with its own ``val`` keeps that
            instead.
        seed: chooses which images those are. The test part never depends on it: it is the official
            validation part of ImageNet and COCO, whose test labels are not public.
        image_size: side of the square that a network sees, in pixels. In memory all images are
            resized to it, and None keeps them as they are. Streamed images are cropped to it after
            resizing; None is 224 for classification and 480 for segmentation.
        download: where MNIST or CIFAR is missing, have torchvision fetch it into the first root.
        path: the folder of ``"imagefolder"`` and ``"imagefolder-stream"``: with ``train`` and
            ``test`` (and perhaps ``val``) inside, or with one folder per class, of which a fixed
            fifth becomes the test part. The folder of ``"maskfolder"``: ``train`` and ``test`` (and
            perhaps ``val``), each with ``images/NAME.jpg`` and ``masks/NAME.png``, whose pixels are
            places in the list ``classes.txt``, or 255.

    Returns:
        The parts, with channel statistics: :class:`DataSplits` in memory as uint8 with those of the
        training part, or :class:`StreamedSplits` with those of ImageNet.

    Raises:
        ConfigError: for an unknown name or an impossible option.
        DataError: for a dataset that is missing (with every place looked in and what to type),
            incomplete or undecodable (naming the file).
        MissingExtraError: for COCO without pycocotools, which draws its masks.
    """
    reader = _reader(name)
    if not 0 < validation < 1:
        raise ConfigError(
            f"validation={validation} must lie between 0 and 1, both excluded, such as 0.1"
        )
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size={image_size} must be at least 1 pixel")
    if (path is None) == (name in _WITH_PATH):
        needs = "', '".join(_WITH_PATH)
        raise ConfigError(
            f"path={path!r}: '{needs}' need a path, and no other dataset has one; got {name!r}"
        )
    raw = reader(Request(roots(root), Path(path or "").expanduser(), image_size, download))
    if isinstance(raw, RawStream):
        return _cut_stream(name, raw, validation, seed, image_size)
    return _cut(name, raw, validation, seed, image_size)


def _reader(name: str) -> Callable[[Request], RawData | RawStream]:
    if name not in _READERS:
        close = difflib.get_close_matches(name.lower(), _READERS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"there is no dataset {name!r}; {hint}the datasets are: {', '.join(_READERS)}"
        )
    return _READERS[name]


def _cut(
    name: str, raw: RawData, validation: float, seed: int, image_size: int | None
) -> DataSplits:
    train, held_out = raw.train, raw.validation
    if held_out is None:
        train, held_out = cut_out(train, validation, seed, "validation")
    train, held_out, test = (resized(images, image_size) for images in (train, held_out, raw.test))
    mean, std = channel_statistics(train.pixels)
    return DataSplits(name, train, held_out, test, raw.classes, mean, std, raw.source)


def _cut_stream(
    name: str, raw: RawStream, validation: float, seed: int, image_size: int | None
) -> StreamedSplits:
    train, held_out = raw.train, raw.validation
    if held_out is None:
        train, held_out = cut_out(train, validation, seed, "validation")
    crop, resize = _STREAMED_SIZES[raw.task]
    side = image_size or crop
    return StreamedSplits(
        name, train, held_out, raw.test, raw.classes, *IMAGENET_STATISTICS, raw.source, raw.task,
        input_shape=(3, side, side), resize=round(side * resize / crop),
    )  # fmt: skip


def _digits(request: Request) -> RawData:
    data = require("sklearn.datasets", "train", "the digits dataset").load_digits()
    # 0 … 16 to 0 … 255
    pixels = torch.as_tensor(data.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    images = Images(pixels, torch.as_tensor(data.target).long())
    train, test = cut_out(images, TEST_SHARE, seed=0, purpose="test")
    return RawData(train, test, tuple(map(str, range(10))), "scikit-learn")


def _mnist(request: Request) -> RawData:
    folders = [root / "MNIST" / "raw" for root in request.roots]
    held = [folder for folder in folders if all((folder / file).is_file() for file in MNIST_FILES)]
    if not held and not request.download:
        raise missing(
            "MNIST (four files such as train-images-idx3-ubyte, unpacked)",
            folders,
            request.roots[0],
        )
    root = held[0].parent.parent if held else request.roots[0]
    train, test = (
        Images(part.data.unsqueeze(1), part.targets.long())
        for part in (from_torchvision("MNIST", root, train, not held) for train in (True, False))
    )
    return RawData(train, test, tuple(map(str, range(10))), str(root / "MNIST"))


_READERS: dict[str, Callable[[Request], RawData | RawStream]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "imagenet": read_imagenet,
    "coco": read_coco,
    "imagefolder": lambda request: read_image_folder(request.path, request.image_size),
    "imagefolder-stream": lambda request: stream_image_folder(request.path),
    "maskfolder": lambda request: read_mask_folder(request.path),
}

FIXED_SIZE = ("digits", "mnist", "cifar10", "cifar100")
"""Datasets whose images have one size, which is changed on request only."""

_WITH_PATH = ("imagefolder", "imagefolder-stream", "maskfolder")

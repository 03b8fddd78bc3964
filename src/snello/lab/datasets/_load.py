"""Loading of datasets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from snello.errors import ConfigError, require

from ._cifar import read_cifar10, read_cifar100
from ._coco import read_coco
from ._folders import TEST_SHARE, read_image_folder
from ._masks import read_mask_folder
from ._places import Request, missing, roots
from ._splits import channel_statistics, cut_out, grey, resized
from ._streamed import read_imagenet, stream_image_folder
from ._torchvision import from_torchvision
from ._types import (
    DataSplits,
    Images,
    Order,
    RawData,
    RawStream,
    Splits,
    StreamedSplits,
    Task,
)
from ._validation import images_for, stream_for

MNIST_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation per channel that torchvision's pretrained networks expect."""

_STREAMED_SIZES: dict[Task, tuple[int, int]] = {
    "classification": (224, 256),
    "segmentation": (480, 520),
}
"""Crop size and, in evaluation, shorter side of an image, as in torchvision's reference scripts."""


def dataset_names() -> tuple[str, ...]:
    """Names of the datasets that [`load_dataset`][snello.lab.datasets.load_dataset] accepts."""
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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    order: Order = "rgb",
    validation_path: str | Path | None = None,
) -> Splits:
    """Find a dataset and split it into training, validation and test parts.

    Args:
        name: for images in memory `"digits"` (1 797 images of 8×8, comes with scikit-learn),
            `"mnist"`, `"cifar10"`, `"cifar100"` or `"imagefolder"`; for images streamed
            from files `"imagenet"`, `"coco"` (segmentation with the 21 classes of Pascal VOC),
            `"imagefolder-stream"` or `"maskfolder"`.
        root: folder that holds the dataset: `root/MNIST/raw`, `root/cifar-10-batches-py`,
            `root/cifar10-jpeg/{train,test}/CLASS/*.jpg`,
            `root/cifar10/{train,test}/CLASS/*.jpg`, `root/cifar10-jpeg.tar.gz`,
            `root/cifar-100-python`, `root/imagenet/{train,val}/n01440764/*.JPEG` or
            `root/coco` with `train2017`, `val2017` and
            `annotations/instances_{train,val}2017.json`; for the last two, `root` may be that
            folder itself. None searches the folders of the environment variable SNELLO_DATA
            (several are separated as in PATH), else `./data`.
        validation: share of the training images that becomes the validation part, in (0, 1),
            stratified by class except for segmentation. If an image folder contains `val`, it is
            used instead.
        seed: seed of that random choice. The test part does not depend on it; for ImageNet and COCO
            it is the official validation part, because their test labels are not public.
        image_size: side of the network's square input, in pixels. Images in memory are resized to
            it; None keeps their size. Streamed images are resized and cropped to it; None is 224
            for classification and 480 for segmentation.
        download: let torchvision download a missing MNIST or CIFAR into the first root.
        path: for `"imagefolder"` and `"imagefolder-stream"`, a folder with `train` and
            `test` (and optionally `val`), with `train` and `val`, of which a fixed half each
            becomes the validation and the test part, or with one folder per class, of which a fixed
            fifth becomes the test part. For `"maskfolder"`, a folder with the same parts, each with
            `images/NAME.jpg` and `masks/NAME.png`; the pixels of a mask are indices into the
            list `classes.txt`, or 255.
        mean: mean of each channel to subtract, with pixels scaled to 0 … 1; None for the dataset's
            own. A trained network needs that of its training.
        std: standard deviation of each channel to divide by, likewise.
        order: order of the channels in a batch, `"rgb"` or `"bgr"`; `"grey"` for one channel
            (not of streamed images).
        validation_path: folder with the validation images, used instead of a cut of the training
            images: one folder per class, with the names of the dataset's classes, or for
            segmentation `images/NAME.jpg` and `masks/NAME.png`.

    Returns:
        The parts with channel statistics: [`DataSplits`][snello.lab.datasets.DataSplits] (uint8 in
        memory, statistics of the training part) or
        [`StreamedSplits`][snello.lab.datasets.StreamedSplits] (statistics of ImageNet).

    Raises:
        ConfigError: for an unknown name or an option out of range.
        DataError: if the dataset is missing (the message lists the searched places and the options
            to set), incomplete or undecodable (the message names the file).
        MissingExtraError: for COCO without pycocotools, which draws its masks.
    """
    reader = _reader(name)
    if not 0 < validation < 1:
        raise ConfigError(
            f"validation={validation} must lie between 0 and 1, both excluded, such as 0.1"
        )
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size={image_size} must be at least 1 pixel")
    if path is None and name in WITH_PATH:
        raise ConfigError(
            f"{name} needs the folder of its images: --data-path=FOLDER, data.path in a recipe, path= in Python"
        )
    if path is not None and name not in WITH_PATH:
        raise ConfigError(
            f"path={path!r}: {name} takes no folder of images, only {', '.join(WITH_PATH)} do"
        )
    raw = reader(Request(roots(root), Path(path or "").expanduser(), image_size, download))
    splits: Splits
    if validation_path is not None:
        raw = _with_validation(raw, Path(validation_path).expanduser(), image_size)
    if order == "grey":
        raw = _grey(name, raw)
    if isinstance(raw, RawStream):
        splits = _cut_stream(name, raw, validation, seed, image_size)
    else:
        splits = _cut(name, raw, validation, seed, image_size)
    splits = replace(splits, order=order, apart=raw.validation is not None)
    return splits if mean is None or std is None else normalised(splits, mean, std)


def _with_validation(
    raw: RawData | RawStream, path: Path, image_size: int | None
) -> RawData | RawStream:
    if isinstance(raw, RawStream):
        return replace(raw, validation=stream_for(raw, path))
    return replace(raw, validation=images_for(raw, path, image_size))


def _grey(name: str, raw: RawData | RawStream) -> RawData:
    if isinstance(raw, RawStream):
        raise ConfigError(
            f"order='grey': {name} is streamed from its files with three channels; imagefolder reads grey images"
        )
    apart = None if raw.validation is None else grey(raw.validation)
    return replace(raw, train=grey(raw.train), test=grey(raw.test), validation=apart)


def normalised(splits: Splits, mean: Sequence[float], std: Sequence[float]) -> Splits:
    """A dataset with the given normalisation; a single value is valid for all channels.

    Args:
        splits: the dataset.
        mean, std: normalisation per channel, with pixels scaled to 0 … 1.

    Raises:
        ConfigError: for a wrong number of values, or deviations that are not positive.
    """
    channels = splits.input_shape[0]
    if not (len(mean) == len(std) and len(mean) in (1, channels)) or min(std) <= 0:
        raise ConfigError(
            f"mean={tuple(mean)} and std={tuple(std)}: {splits.name} has {channels} "
            f"channel{'s' if channels > 1 else ''}; give as many numbers of each, or one, and positive deviations"
        )
    times = channels // len(mean)
    return replace(splits, mean=tuple(mean) * times, std=tuple(std) * times)


def _reader(name: str) -> Callable[[Request], RawData | RawStream]:
    if name not in _READERS:
        close = difflib.get_close_matches(name.lower(), _READERS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"there is no dataset {name!r}; {hint}the datasets are: {', '.join(_READERS)}; a folder of "
            "your own is --data=imagefolder --data-path=FOLDER"
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
"""Datasets with images of equal size, resized only if `image_size` is given."""

WITH_PATH = ("imagefolder", "imagefolder-stream", "maskfolder")
"""Datasets in a folder given by the user."""

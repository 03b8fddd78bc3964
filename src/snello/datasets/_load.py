"""Datasets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snello.datasets._folders import TEST_SHARE, class_names, read_image_folder, read_parts
from snello.datasets._places import missing, roots, unpacked
from snello.datasets._splits import channel_statistics, cut_out, resized
from snello.datasets._types import DataSplits, Images, RawData
from snello.errors import ConfigError, DataError, require

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_COUNTS = (50_000, 10_000)
MNIST_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True)
class _Request:
    roots: tuple[Path, ...]
    path: Path | None
    image_size: int | None
    download: bool


def available() -> tuple[str, ...]:
    """The names that :func:`load` knows."""
    return tuple(_READERS)


def load(
    name: str,
    root: str | Path | None = None,
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    download: bool = False,
    path: str | Path | None = None,
) -> DataSplits:
    """Read a dataset into memory and cut it into training, validation and test parts.

    Args:
        name: ``"digits"`` (1 797 images of 8×8, comes with scikit-learn), ``"mnist"``, ``"cifar10"``, or
            ``"imagefolder"``.
        root: folder that holds the dataset: ``root/MNIST/raw``, ``root/cifar-10-batches-py``,
            ``root/cifar10-jpeg/{train,test}/CLASS/*.jpg``, ``root/cifar10/{train,test}/CLASS/*.jpg`` or
            ``root/cifar10-jpeg.tar.gz``. None looks in the folders of the environment variable SNELLO_DATA
            (several are separated as in PATH), else in ``./data``.
        validation: share of every class of the training images that becomes the validation part, in (0, 1).
            An image folder with its own ``val`` keeps that instead.
        seed: chooses which images those are. The test part never depends on it.
        image_size: resize all images to this many pixels squared; None keeps them as they are.
        download: where MNIST or CIFAR-10 is missing, have torchvision fetch it into the first root.
        path: the folder of ``"imagefolder"``: with ``train`` and ``test`` (and perhaps ``val``) inside, or
            with one folder per class, of which a fixed fifth becomes the test part.

    Returns:
        The parts, in memory as uint8, with the training part's channel statistics.

    Raises:
        ConfigError: for an unknown name or an impossible option.
        DataError: for a dataset that is missing (with every place looked in and what to type), incomplete or
            undecodable (naming the file).
    """
    reader = _reader(name)
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation} must lie between 0 and 1, both excluded, such as 0.1")
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size={image_size} must be at least 1 pixel")
    if (path is None) == (name == "imagefolder"):
        raise ConfigError(
            f"path={path!r}: 'imagefolder' needs a path, and no other dataset has one; got {name!r}"
        )
    folder = None if path is None else Path(path).expanduser()
    raw = reader(_Request(roots(root), folder, image_size, download))
    return _cut(name, raw, validation, seed, image_size)


def _reader(name: str) -> Callable[[_Request], RawData]:
    if name not in _READERS:
        close = difflib.get_close_matches(name.lower(), _READERS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"there is no dataset {name!r}; {hint}the datasets are: {', '.join(_READERS)}")
    return _READERS[name]


def _cut(name: str, raw: RawData, validation: float, seed: int, image_size: int | None) -> DataSplits:
    train, held_out = raw.train, raw.validation
    if held_out is None:
        train, held_out = cut_out(train, validation, seed, "validation")
    train, held_out, test = (resized(images, image_size) for images in (train, held_out, raw.test))
    mean, std = channel_statistics(train.pixels)
    return DataSplits(name, train, held_out, test, raw.classes, mean, std, raw.source)


def _digits(request: _Request) -> RawData:
    data = require("sklearn.datasets", "train", "the digits dataset").load_digits()
    # 0 … 16 to 0 … 255
    pixels = torch.as_tensor(data.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    images = Images(pixels, torch.as_tensor(data.target).long())
    train, test = cut_out(images, TEST_SHARE, seed=0, purpose="test")
    return RawData(train, test, tuple(map(str, range(10))), "scikit-learn")


def _mnist(request: _Request) -> RawData:
    folders = [root / "MNIST" / "raw" for root in request.roots]
    held = [folder for folder in folders if all((folder / file).is_file() for file in MNIST_FILES)]
    if not held and not request.download:
        raise missing(
            "MNIST (four files such as train-images-idx3-ubyte, unpacked)", folders, request.roots[0]
        )
    root = held[0].parent.parent if held else request.roots[0]
    train, test = (
        Images(part.data.unsqueeze(1), part.targets.long())
        for part in (_torchvision("MNIST", root, train, not held) for train in (True, False))
    )
    return RawData(train, test, tuple(map(str, range(10))), str(root / "MNIST"))


def _cifar10(request: _Request) -> RawData:
    places: list[Path] = []
    for root in request.roots:
        if (root / "cifar-10-batches-py").is_dir():
            return _cifar10_batches(root, download=False)
        for name in ("cifar10-jpeg", "cifar10"):
            if (root / name / "train").is_dir():
                return _cifar10_folders(root / name)
        archive = root / "cifar10-jpeg.tar.gz"
        if archive.is_file():
            return _cifar10_folders(_with_train(unpacked(archive), archive))
        places += [root / "cifar-10-batches-py", root / "cifar10-jpeg", root / "cifar10", archive]
    if request.download:
        return _cifar10_batches(request.roots[0], download=True)
    raise missing("CIFAR-10", places, request.roots[0])


def _cifar10_batches(root: Path, download: bool) -> RawData:
    train, test = (_torchvision("CIFAR10", root, part, download) for part in (True, False))
    classes, source = tuple(train.classes), str(root / "cifar-10-batches-py")
    return RawData(_from_torchvision(train), _from_torchvision(test), classes, source)


def _from_torchvision(cifar: Any) -> Images:
    return Images(torch.as_tensor(cifar.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(cifar.targets))


def _cifar10_folders(path: Path) -> RawData:
    if different := sorted(set(class_names(path / "train")) ^ set(CIFAR10)):
        raise DataError(
            f"{path / 'train'} is not CIFAR-10: class {different[0]!r} is missing or does not belong"
        )
    raw = read_parts(path, None)
    found = len(raw.train), len(raw.test)
    if found != CIFAR10_COUNTS:
        raise DataError(
            f"{path} holds {found[0]} training and {found[1]} test images instead of "
            f"{CIFAR10_COUNTS[0]} and {CIFAR10_COUNTS[1]}; unpack it again, or load a subset of your own "
            f"with --data.name=imagefolder --data.path={path}"
        )
    return raw


def _with_train(folder: Path, archive: Path) -> Path:
    """The folder with ``train`` inside: the unpacked one, or a single folder within it."""
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (candidate / "train").is_dir():
            return candidate
    raise DataError(
        f"{archive} holds no folder 'train'; it should hold train/CLASS/*.jpg and test/CLASS/*.jpg"
    )


def _torchvision(kind: str, root: Path, train: bool, download: bool) -> Any:
    datasets = require("torchvision.datasets", "train", f"reading {kind}")
    try:
        return getattr(datasets, kind)(root, train=train, download=download)
    except Exception as error:  # torchvision raises AssertionError, RuntimeError, URLError … for bad files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        doing = "fetched into" if download else "read from"
        raise DataError(
            f"{kind} cannot be {doing} {root.absolute()}: {reason}; remove what is damaged there and pass "
            "--data.download=true (download=True in Python), or copy it there by hand"
        ) from error


_READERS: dict[str, Callable[[_Request], RawData]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "imagefolder": lambda request: read_image_folder(request.path or Path(), request.image_size),
}

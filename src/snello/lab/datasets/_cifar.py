"""CIFAR-10 and CIFAR-100 from torchvision's files; CIFAR-10 also from folders of JPEG images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from snello.errors import DataError, reason_of
from snello.store import archives

from ._folders import class_names, read_parts
from ._places import Request, missing, unpacked
from ._torchvision import from_torchvision
from ._types import Images, RawData

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_COUNTS = (50_000, 10_000)
TORCHVISION_FOLDERS = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}


def read_cifar10(request: Request) -> RawData:
    """Read CIFAR-10 from the first source found.

    The sources are `cifar-10-batches-py`, the folders `cifar10-jpeg` and `cifar10`, and
    `cifar10-jpeg.tar.gz`.
    """
    places: list[Path] = []
    for root in request.roots:
        if (root / "cifar-10-batches-py").is_dir():
            return _batches("CIFAR10", root, download=False)
        for name in ("cifar10-jpeg", "cifar10"):
            if (root / name / "train").is_dir():
                return _folders(root / name)
        archive = root / "cifar10-jpeg.tar.gz"
        if archive.is_file():
            return _archived(archive)
        places += [root / "cifar-10-batches-py", root / "cifar10-jpeg", root / "cifar10", archive]
    if request.download:
        return _batches("CIFAR10", request.roots[0], download=True)
    raise missing("CIFAR-10", places, request.roots[0])


def read_cifar100(request: Request) -> RawData:
    """Read CIFAR-100 from `cifar-100-python`, with the 100 fine classes."""
    places = [root / TORCHVISION_FOLDERS["CIFAR100"] for root in request.roots]
    for root, place in zip(request.roots, places, strict=True):
        if place.is_dir():
            return _batches("CIFAR100", root, download=False)
    if request.download:
        return _batches("CIFAR100", request.roots[0], download=True)
    raise missing("CIFAR-100", places, request.roots[0])


def _batches(kind: str, root: Path, download: bool) -> RawData:
    train, test = (from_torchvision(kind, root, part, download) for part in (True, False))
    return RawData(
        _images(train), _images(test), tuple(train.classes), str(root / TORCHVISION_FOLDERS[kind])
    )


def _images(cifar: Any) -> Images:
    return Images(
        torch.as_tensor(cifar.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(cifar.targets)
    )


def _folders(path: Path) -> RawData:
    if different := sorted(set(class_names(path / "train")) ^ set(CIFAR10)):
        raise DataError(
            f"{path / 'train'} is not CIFAR-10: class {different[0]!r} is missing or not one of "
            "its classes"
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


def _archived(archive: Path) -> RawData:
    """Read the images of an archive; they are unpacked and decoded once and then cached."""
    folder = unpacked(archive)
    file = folder.with_name(f"{folder.name}-decoded.pt")
    source = _with_train(folder, archive)
    if not file.is_file():
        raw = _folders(source)
        parts = {"train": raw.train, "test": raw.test}
        content = {part: (images.pixels, images.labels) for part, images in parts.items()}
        archives.save(file, content)
    return _decoded(file, source)


def _decoded(file: Path, source: Path) -> RawData:
    try:
        content = archives.load(file)
        train, test = (Images(*content[part]) for part in ("train", "test"))
    except Exception as error:  # a damaged file may raise any exception
        raise DataError(
            f"{file} is damaged ({reason_of(error)}); remove it to have the images decoded again"
        ) from error
    return RawData(train, test, CIFAR10, str(source))


def _with_train(folder: Path, archive: Path) -> Path:
    """The folder that contains `train`: the unpacked one or a single folder inside it."""
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (candidate / "train").is_dir():
            return candidate
    raise DataError(
        f"{archive} has no folder 'train'; it must contain train/CLASS/*.jpg and test/CLASS/*.jpg"
    )

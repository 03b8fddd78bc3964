"""ImageNet and class folders, streamed from their files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from snello.errors import DataError, reason_of

from ._folders import (
    TEST_SHARE,
    check_folder,
    check_same_classes,
    class_names,
    list_classes,
    part_folders,
    test_and_validation,
)
from ._places import Request, missing
from ._splits import cut_out
from ._texts import Texts
from ._types import RawStream, StreamedImages

IMAGENET_CLASSES = 1000
ARCHIVE = "ILSVRC2012_img_train.tar"


def stream_image_folder(path: Path) -> RawStream:
    """List a folder in the layout of `read_image_folder`, without decoding its images."""
    check_folder(path)
    if not (path / "train").is_dir():
        classes = class_names(path)
        train, test = cut_out(stream_classes(path, classes), TEST_SHARE, seed=0, purpose="test")
        return RawStream(train, test, classes, str(path), "classification")
    classes = class_names(path / "train")
    parts = {
        part: stream_classes(folder, classes)
        for part, folder in part_folders(path, classes).items()
    }
    test, validation = test_and_validation(parts)
    return RawStream(parts["train"], test, classes, str(path), "classification", validation)


def stream_classes(folder: Path, classes: Sequence[str]) -> StreamedImages:
    """Files of `folder/CLASS/**`, in the order of `list_classes`."""
    files, labels = list_classes(folder, classes)
    return StreamedImages(Texts(files), labels)


def read_imagenet(request: Request) -> RawStream:
    """List ILSVRC2012, with `train` and `val` in class folders as torchvision unpacks them."""
    places = [root / name for root in request.roots for name in ("imagenet", "ILSVRC2012", "")]
    for place in places:
        if (place / "train").is_dir() and (place / "val").is_dir():
            return _imagenet(place)
    for place in places:
        if (place / ARCHIVE).is_file():
            raise _still_packed(place)
    raise missing(
        "ImageNet (folders train and val, with a folder of images for each of 1000 classes)",
        places,
        request.roots[0],
        "get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from "
        "https://image-net.org and put them there; torchvision.datasets.ImageNet unpacks them",
    )


def _imagenet(place: Path) -> RawStream:
    train, val = place / "train", place / "val"
    ids = class_names(train)
    if len(ids) != IMAGENET_CLASSES:
        raise DataError(
            f"{train.absolute()} holds {len(ids)} class folders instead of the {IMAGENET_CLASSES} of ImageNet; "
            f"unpack it again, or load a subset of your own with --data.name=imagefolder-stream --data.path={place}"
        )
    check_same_classes(val, train, ids)
    return RawStream(
        stream_classes(train, ids),
        stream_classes(val, ids),
        _names(place, ids),
        str(place),
        "classification",
    )


def _names(place: Path, ids: tuple[str, ...]) -> tuple[str, ...]:
    """First English name of each class from torchvision's file, else WordNet ids."""
    file = place / "meta.bin"
    if not file.is_file():
        return ids
    try:
        names = torch.load(file, weights_only=True)[0]
        return tuple(str(names[wnid][0]) for wnid in ids)
    except Exception as error:  # a damaged file may raise any exception
        raise DataError(
            f"{file.absolute()} is not torchvision's list of ImageNet classes: {reason_of(error)}; remove it to use "
            "WordNet ids as names"
        ) from error


def _still_packed(place: Path) -> DataError:
    folder = str(place.absolute())
    code = f"from torchvision.datasets import ImageNet as I; [I({folder!r}, p) for p in ('train', 'val')]"
    return DataError(
        f"ImageNet in {folder} is still packed; torchvision unpacks it (it needs scipy): "
        f"python -c {shlex.quote(code)}"
    )

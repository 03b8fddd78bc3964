"""Validation images from a folder of their own, instead of a cut of the training images."""

from __future__ import annotations

from pathlib import Path

from snello.errors import DataError

from ._folders import class_names, list_classes, read_classes
from ._masks import mask_part
from ._splits import grey
from ._streamed import stream_classes
from ._types import Images, RawData, RawStream, StreamedImages


def images_for(raw: RawData, path: Path, image_size: int | None) -> Images:
    """Read `path/CLASS/*` with the classes and the channels of a dataset in memory.

    Args:
        raw: the dataset.
        path: folder with one folder of images per class.
        image_size: side in pixels; None for the size of the dataset's images.

    Raises:
        DataError: if the folder is missing, its classes differ, or an image cannot be decoded.
        ConfigError: if the images differ in size and the dataset's are not square.
    """
    _check_classes(path, raw.classes)
    channels, height, width = raw.train.pixels.shape[1:]
    side = image_size or (height if height == width else None)
    found = read_classes(path, raw.classes, side)
    if side is None and found.pixels.shape[2:] != (height, width):
        raise DataError(
            f"the images of {path.absolute()} are {found.pixels.shape[3]}×{found.pixels.shape[2]}, "
            f"those of the dataset {width}×{height} (width × height); resize them, or set an image size"
        )
    return grey(found) if channels == 1 else found


def stream_for(raw: RawStream, path: Path) -> StreamedImages:
    """List `path/CLASS/*`, or `path/{images,masks}/*` for segmentation, without decoding.

    Raises:
        DataError: if the folder is missing, its classes differ, or an image has no mask.
    """
    if raw.task == "segmentation":
        _check_folder(path)
        return mask_part(path, len(raw.classes))
    _check_classes(path, raw.classes)
    return stream_classes(path, raw.classes)


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise DataError(
            f"no folder of validation images in {path.absolute()}: it does not exist, or is a file"
        )


def _check_classes(path: Path, classes: tuple[str, ...]) -> None:
    _check_folder(path)
    if different := sorted(set(class_names(path)) ^ set(classes)):
        raise DataError(
            f"{path.absolute()} and the dataset differ in class {different[0]!r}: the folder needs one "
            f"folder of images for each of the {len(classes)} classes: {', '.join(classes[:3])}"
            + (", ..." if len(classes) > 3 else "")
        )
    list_classes(path, classes)  # names the class without images before any image is decoded

"""Folders of images and masks, for segmentation of user data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snello.errors import DataError, require

from ._folders import (
    check_folder,
    fixed_order,
    image_files,
    other_suffixes,
    test_and_validation,
)
from ._texts import Texts
from ._types import IGNORED, RawStream, StreamedImages


def read_mask_folder(path: Path) -> RawStream:
    """Read `path/{train,test[,val]}/{images,masks}/**` and `path/classes.txt`.

    Args:
        path: the folder. With `train` and `val` alone, a fixed half of `val` is the validation
            part and the other half the test part. An image and its mask have the same name except for the suffix.
            `classes.txt` has the name of one class per line; the first is label 0.

    Raises:
        DataError: if the folder, the list of classes, a part, an image or a mask is missing.
    """
    check_folder(path)
    classes = _classes(path / "classes.txt")
    has_val = (path / "val").is_dir()
    names = ["train", "val"] if has_val else ["train", "test"]
    if has_val and (path / "test").is_dir():
        names.append("test")
    parts = {name: mask_part(path / name, len(classes)) for name in names}
    test, validation = test_and_validation(parts)
    return RawStream(parts["train"], test, classes, str(path), "segmentation", validation)


def _classes(file: Path) -> tuple[str, ...]:
    try:
        names = tuple(
            line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"no list of classes in {file.absolute()}: {error}; write one name per line, the first for label 0"
        ) from error
    if not 2 <= len(names) <= IGNORED:
        raise DataError(
            f"{file.absolute()} names {len(names)} classes; there can be 2 … {IGNORED}, one per line"
        )
    return names


def mask_part(folder: Path, classes: int) -> StreamedImages:
    """List `folder/{images,masks}/**`, paired by name; labels are below `classes`.

    Raises:
        DataError: if there are no images, an image or a mask is missing, or two have one name.
    """
    images, masks = (_by_name(folder / kind) for kind in ("images", "masks"))
    if unpaired := sorted(set(images) ^ set(masks)):
        kind = "mask" if unpaired[0] in images else "image"
        raise DataError(
            f"{folder.absolute()}: {unpaired[0]!r} has no {kind}; add one or remove {unpaired[0]!r}"
        )
    names = sorted(images)
    files, drawn = (Texts(found[name] for name in names) for found in (images, masks))
    return StreamedImages(files, MaskFiles(drawn, classes)).subset(fixed_order(len(names)))


def _by_name(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in image_files(folder):
        name = os.path.splitext(os.path.relpath(file, folder))[0]
        if name in found:
            raise DataError(f"{found[name]} and {file} have one name: rename one, or remove it")
        found[name] = file
    if not found:
        raise DataError(
            f"{folder.absolute()} has no image files{other_suffixes(folder)}; put them there"
        )
    return found


@dataclass(frozen=True)
class MaskFiles:
    """Masks in image files (greyscale or palette) whose pixel values are labels.

    Attributes:
        files: path of each mask.
        classes: number of classes.
    """

    files: Texts
    classes: int

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, indices: Tensor) -> MaskFiles:
        """The masks at the given indices, in that order."""
        return MaskFiles(self.files.subset(indices), self.classes)

    def mask(self, index: int, height: int, width: int) -> Tensor:
        """Read the mask of an image: uint8, shape `(height, width)`.

        Raises:
            DataError: if the mask cannot be decoded, is an RGB image, differs in size from its
                image, or has an unknown label.
        """
        file = self.files[index]
        mask = _decoded(file)
        if mask.shape != (height, width):
            raise DataError(
                f"mask {file} is {mask.shape[1]}×{mask.shape[0]}, its image {width}×{height} (width × height)"
            )
        known = (mask < self.classes) | (mask == IGNORED)
        if not bool(known.all()):
            raise DataError(
                f"mask {file} has the label {int(mask[~known][0])}; valid are the labels of "
                f"classes.txt, 0 … {self.classes - 1}, and {IGNORED} for ignored pixels"
            )
        return mask


def _decoded(file: str) -> Tensor:
    pil = require("PIL.Image", "train", "reading image files")
    try:
        with pil.open(file) as image:
            mode, size, content = image.mode, image.size, bytearray(image.tobytes())
    except Exception as error:  # a damaged file may raise any exception
        raise DataError(f"mask {file} cannot be decoded: {error}; replace or remove it") from error
    if mode not in ("L", "P"):
        raise DataError(
            f"mask {file} has mode {mode!r} instead of one byte per pixel; save labels as greyscale or palette"
        )
    return torch.frombuffer(content, dtype=torch.uint8).view(size[1], size[0])

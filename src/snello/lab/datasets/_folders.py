"""Folders of image files, one folder per class, decoded into memory."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, DataError, require

from ._splits import PartT, cut_out, generator
from ._texts import Texts
from ._types import Images, RawData

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

UNREAD = frozenset({".gif", ".heic", ".heif", ".avif", ".jp2", ".jfif", ".tga", ".svg"})
"""Suffixes of images that are not read; other files, such as lists of labels, are ignored."""
_PARTS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "val": "val",
    "valid": "val", "validation": "val",
}  # fmt: skip
"""Usual names of the parts, in small letters, and those that are read."""

TEST_SHARE = 0.2
"""Share of a dataset without a test part that is split off as one, always the same images."""


def read_image_folder(path: Path, image_size: int | None) -> RawData:
    """Read `path/{train,test[,val]}/CLASS/*`, `path/{train,val}/CLASS/*` or `path/CLASS/*`.

    Args:
        path: the folder. If it contains `train` and `test`, these are the parts, and `val`,
            if present, is the validation part. With `train` and `val` alone, a fixed half of
            `val` is the validation part and the other half the test part, so that neither has an
            image that a network was trained on. Otherwise every folder is a class, and a fixed fifth
            of each class is the test part.
        image_size: size in pixels to which the shorter side is resized before a centre crop; None
            if all images have the same size.

    Raises:
        DataError: if the folder is missing or has no classes, a class has no images, or an image
            cannot be decoded (the message names it).
        ConfigError: if the images differ in size and `image_size` is None.
    """
    check_folder(path)
    if (path / "train").is_dir():
        return read_parts(path, image_size)
    classes = class_names(path)
    images = read_classes(path, classes, image_size)
    train, test = cut_out(images, TEST_SHARE, seed=0, purpose="test")
    return RawData(train, test, classes, str(path))


def check_folder(path: Path) -> None:
    """Raise DataError for a path that is not a folder, and for parts with other names than ours."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise DataError(
            f"no image folder in {path.absolute()}: it {found}; give the folder that "
            "holds train/CLASS or CLASS folders (data.path in a recipe, --data-path)"
        )
    names = [p.name for p in path.iterdir() if p.is_dir()]
    parts = {name: _PARTS[name.lower()] for name in names if name.lower() in _PARTS}
    misnamed = sorted(name for name, part in parts.items() if name != part)
    # Without a training part they may be classes, such as "valid" and "invalid".
    if misnamed and "train" in parts.values():
        raise DataError(
            f"{path.absolute()} has a folder {misnamed[0]!r}, which would be read as a class or not at all: rename "
            f"it to {parts[misnamed[0]]!r}"
        )


def read_parts(path: Path, image_size: int | None) -> RawData:
    """Read the folders of `part_folders`; the classes of all parts must be the same."""
    classes = class_names(path / "train")
    parts = {
        part: read_classes(folder, classes, image_size)
        for part, folder in part_folders(path, classes).items()
    }
    _check_one_shape(path, parts)
    test, validation = test_and_validation(parts)
    return RawData(parts["train"], test, classes, str(path), validation)


def test_and_validation(parts: Mapping[str, PartT]) -> tuple[PartT, PartT | None]:
    """The part `test`, and `val` if there is one; without `test`, each a half of `val`."""
    if "test" in parts:
        return parts["test"], parts.get("val")
    validation, test = cut_out(parts["val"], 0.5, seed=0, purpose="test")
    return test, validation


def part_folders(path: Path, classes: Sequence[str]) -> dict[str, Path]:
    """The folders `train` and `test`, `val` or both, with the given classes."""
    names = [part for part in ("train", "test", "val") if (path / part).is_dir()]
    if len(names) == 1:
        raise DataError(
            f"{path.absolute()} has a folder 'train' but no folder 'test' or 'val'; add one with the same classes, "
            f"or give {path / 'train'} as the folder to use a fifth of it as the test part"
        )
    folders = {part: path / part for part in names}
    for folder in folders.values():
        check_same_classes(folder, path / "train", classes)
    return folders


def check_same_classes(folder: Path, train: Path, classes: Sequence[str]) -> None:
    """Raise DataError if a folder's classes differ from those of the training part."""
    if different := sorted(set(class_names(folder)) ^ set(classes)):
        raise DataError(
            f"{folder} and {train} differ in class {different[0]!r}: add it to both or remove it"
        )


def class_names(folder: Path) -> tuple[str, ...]:
    """Sorted names of the class folders; the label of a class is its index."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(
            f"{folder.absolute()} has no class folders; put images into {folder / 'CLASS'}/"
        )
    return tuple(names)


def read_classes(folder: Path, classes: Sequence[str], image_size: int | None) -> Images:
    """Decode `folder/CLASS/**` of every class, in the order of `list_classes`."""
    files, labels = list_classes(folder, classes)
    return Images(_decode(files, image_size), labels, Texts(files))


def list_classes(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """The files of `folder/CLASS/**` of every class and their labels, in a fixed random order.

    Folders list one class after the other. The fixed shuffle makes any slice an unbiased sample.
    """
    files: list[str] = []
    labels: list[int] = []
    suffixes: Counter[str] = Counter()
    for label, name in enumerate(classes):
        every = _visible_files(folder / name)
        found = _sorted_images(every)
        if not found:
            raise DataError(
                f"class folder {(folder / name).absolute()} has no images"
                f"{other_suffixes(folder / name)}; fill or remove it"
            )
        suffixes.update(map(_suffix, every))
        files += found
        labels += [label] * len(found)
    _warn_of_unread(folder, suffixes)
    order = fixed_order(len(files))
    return [files[i] for i in order.tolist()], torch.tensor(labels)[order]


def fixed_order(count: int) -> Tensor:
    """A random permutation with a fixed seed: int64, shape `(count,)`."""
    return torch.randperm(count, generator=generator(0, "folder order"))


def image_files(folder: Path) -> list[str]:
    """Sorted paths of the image files in a folder and its subfolders."""
    return _sorted_images(_visible_files(folder))


def _sorted_images(files: Iterable[str]) -> list[str]:
    found = [file for file in files if _suffix(file) in EXTENSIONS]
    return sorted(found, key=lambda file: file.split(os.sep))


def _visible_files(folder: Path) -> list[str]:
    return [
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    ]


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _warn_of_unread(folder: Path, others: Counter[str]) -> None:
    if unread := sorted(UNREAD & set(others)):
        listed = ", ".join(f"{suffix} ({others[suffix]})" for suffix in unread)
        warnings.warn(
            f"{folder.absolute()} has images that are not read: {listed}; convert them to one of "
            f"{', '.join(sorted(EXTENSIONS))}",
            stacklevel=3,
        )


def other_suffixes(folder: Path) -> str:
    """The suffixes of a folder's files that are not read, and those that are, for messages."""
    counts = Counter(_suffix(file) or "no suffix" for file in _visible_files(folder))
    found = ", ".join(f"{suffix} ({count})" for suffix, count in counts.most_common(5))
    read = ", ".join(sorted(EXTENSIONS))
    return f": its files end in {found}, and only {read} are read" if found else ""


def _decode(files: Sequence[str], image_size: int | None) -> Tensor:
    pil = require("PIL.Image", "train", "reading image files")
    first = _open(pil, files[0], image_size)
    pixels = _allocate(len(files), first.shape)
    for index, file in enumerate(files):
        image = _open(pil, file, image_size)
        if image.shape != first.shape:
            raise ConfigError(
                f"the images differ in size: {file} is {_size(image)}, {files[0]} is {_size(first)} (width × "
                "height); give image_size "
                "(--image-size=N, or --data.image_size=N in a recipe) to resize them all to N×N"
            )
        pixels[index] = image
    return pixels


def open_rgb(pil: Any, file: str) -> Any:
    """Open a file as a PIL image with three channels; greyscale is repeated.

    Raises:
        DataError: if the file is missing, damaged, or has more than 8 bits per channel; the message
            names it.
    """
    try:
        with pil.open(file) as image:
            if image.mode.startswith(("I", "F")):
                # Pillow would clip these to 8 bits without a warning.
                raise DataError(
                    f"{os.path.abspath(file)} has more than 8 bits per channel; convert it to 8 bits"
                )
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # a damaged file may raise any exception
        raise DataError(
            f"image {os.path.abspath(file)} cannot be decoded: {error}; replace or remove it"
        ) from error


def _open(pil: Any, file: str, image_size: int | None) -> Tensor:
    """Decode one file to uint8 `(3, H, W)`."""
    image = open_rgb(pil, file)
    if image_size is not None:
        image = _resize(image, image_size)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def _resize(image: Any, size: int) -> Any:
    """The largest centred square of the image, resized to `size` × `size`."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    bilinear = 2  # PIL.Image.Resampling.BILINEAR, which Pillow antialiases when downscaling
    return image.crop((left, top, left + side, top + side)).resize((size, size), bilinear)


def _allocate(count: int, shape: torch.Size) -> Tensor:
    needed, memory = count * shape.numel(), _physical_memory()
    if memory is not None and needed > 0.8 * memory:
        raise DataError(
            f"{count} images of {shape[2]}×{shape[1]} pixels need {needed / 1e9:.0f} GB once decoded, and "
            f"this machine has {memory / 1e9:.0f} GB of memory; choose a smaller image_size, or "
            "stream them with --data.name=imagefolder-stream"
        )
    return torch.empty((count, *shape), dtype=torch.uint8)


def _physical_memory() -> int | None:
    if not hasattr(os, "sysconf"):  # Windows: no portable way to ask
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_one_shape(path: Path, parts: dict[str, Images]) -> None:
    shape = parts["train"].pixels.shape[1:]
    for name, images in parts.items():
        if images.pixels.shape[1:] != shape:
            here, there = _size(images.pixels), _size(parts["train"].pixels)
            raise ConfigError(
                f"{path}: the images of {name!r} are {here}, those of 'train' are {there} "
                "(width × height); give image_size "
                "(--image-size=N, or --data.image_size=N in a recipe) to resize them all to N×N"
            )


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]}×{pixels.shape[-2]}"

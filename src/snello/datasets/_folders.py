"""Folders of image files, one folder per class, decoded into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snello.datasets._splits import cut_out, generator
from snello.datasets._types import Images, RawData
from snello.errors import ConfigError, DataError, require

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

TEST_SHARE = 0.2
"""Share of a dataset without a test part of its own that becomes one, always the same images."""


def read_image_folder(path: Path, image_size: int | None) -> RawData:
    """Read ``path/{train,test[,val]}/CLASS/*`` or ``path/CLASS/*``.

    Args:
        path: the folder. With ``train`` and ``test`` inside, they are the parts, and ``val``, where it is
            there, is the validation part. Otherwise every folder is a class, and a fixed fifth of each is the
            test part.
        image_size: resize the shorter side to this and crop the centre; None when all have one size.

    Raises:
        DataError: for a folder that is missing, has no classes, a class without images, or an image that
            cannot be decoded, naming it.
        ConfigError: when the images differ in size and ``image_size`` is None.
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise DataError(f"no image folder in {path.absolute()}: it {found}; give path=/a/folder/of/images")
    if (path / "train").is_dir():
        return read_parts(path, image_size)
    classes = class_names(path)
    images = read_classes(path, classes, image_size)
    train, test = cut_out(images, TEST_SHARE, seed=0, purpose="test")
    return RawData(train, test, classes, str(path))


def read_parts(path: Path, image_size: int | None) -> RawData:
    """Read ``path/{train,test[,val]}/CLASS/*``; the classes of all parts must be the same."""
    classes = class_names(path / "train")
    if not (path / "test").is_dir():
        raise DataError(
            f"{path.absolute()} has a folder 'train' but no folder 'test'; add one with the same classes, "
            f"or give path={path / 'train'} to have a fifth of it cut out as the test part"
        )
    parts = {}
    for part in ("train", "test", "val"):
        folder = path / part
        if part == "val" and not folder.is_dir():
            continue
        if different := sorted(set(class_names(folder)) ^ set(classes)):
            raise DataError(f"{folder} and {path / 'train'} differ in class {different[0]!r}; both need it")
        parts[part] = read_classes(folder, classes, image_size)
    _check_one_shape(path, parts)
    return RawData(parts["train"], parts["test"], classes, str(path), parts.get("val"))


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted: the label of a class is its place in this order."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{folder.absolute()} holds no class folders; put images into {folder / 'CLASS'}/")
    return tuple(names)


def read_classes(folder: Path, classes: Sequence[str], image_size: int | None) -> Images:
    """Decode ``folder/CLASS/**`` of every class, in a fixed random order.

    Folders list one class after the other; shuffled once and for all, any slice is a fair sample.
    """
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not found:
            raise DataError(f"class folder {(folder / name).absolute()} holds no images; fill or remove it")
        files += found
        labels += [label] * len(found)
    order = torch.randperm(len(files), generator=generator(0, "folder order")).tolist()
    pixels = _decode([files[i] for i in order], image_size)
    return Images(pixels, torch.tensor([labels[i] for i in order]))


def _decode(files: Sequence[Path], image_size: int | None) -> Tensor:
    pil = require("PIL.Image", "train", "reading image files")
    first = _open(pil, files[0], image_size)
    pixels = _allocate(len(files), first.shape)
    for index, file in enumerate(files):
        image = _open(pil, file, image_size)
        if image.shape != first.shape:
            raise ConfigError(
                f"the images differ in size: {file} is {_size(image)}, {files[0]} is {_size(first)} (width × "
                "height); give image_size (--data.image_size=N) to resize them all to N×N"
            )
        pixels[index] = image
    return pixels


def _open(pil: Any, file: Path, image_size: int | None) -> Tensor:
    """One file as uint8 ``(3, H, W)``; greyscale becomes three equal channels."""
    try:
        with pil.open(file) as image:
            if image.mode.startswith(("I", "F")):
                # Pillow would clip these to 8 bits without a word.
                raise DataError(f"{file.absolute()} has more than 8 bits per channel; convert it to 8 bits")
            image = image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # a damaged file raises whatever its first broken byte leads to
        raise DataError(
            f"image {file.absolute()} cannot be decoded: {error}; replace or remove it"
        ) from error
    if image_size is not None:
        image = _resize(image, image_size)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def _resize(image: Any, size: int) -> Any:
    """The largest centred square of the image, resized to ``size`` × ``size``."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    bilinear = 2  # PIL.Image.Resampling.BILINEAR, antialiased when it shrinks
    return image.crop((left, top, left + side, top + side)).resize((size, size), bilinear)


def _allocate(count: int, shape: torch.Size) -> Tensor:
    needed, memory = count * shape.numel(), _physical_memory()
    if memory is not None and needed > 0.8 * memory:
        raise DataError(
            f"{count} images of {shape[2]}×{shape[1]} pixels need {needed / 1e9:.0f} GB once decoded, and "
            f"this machine has {memory / 1e9:.0f} GB of memory; give a smaller image_size or fewer images"
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
                "(width × height); give image_size (--data.image_size=N) to resize them all to N×N"
            )


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]}×{pixels.shape[-2]}"

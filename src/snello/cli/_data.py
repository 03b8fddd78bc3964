"""Datasets of the command line: options, and images as a model takes them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Literal

from snello.errors import ConfigError

if TYPE_CHECKING:
    from snello.lab.datasets import Splits
    from snello.store import ImageInput


def add_data_arguments(parser: argparse._ActionsContainer, *, trained: bool = True) -> None:
    """Add the options for a dataset's folder, an image folder, the size and the normalisation."""
    parser.add_argument(
        "--data-root", help="folder with the dataset; default: $SNELLO_DATA, else ./data"
    )
    parser.add_argument("--data-path", help="the image folder, for imagefolder")
    parser.add_argument(
        "--image-size", type=int, help="resize the images to this many pixels a side"
    )
    if not trained:
        return  # there is no normalisation that a network has learned with
    for name, text in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}", help=f"{text} per channel of pixels in 0 ... 1, as 0.5,0.5,0.5; default: the "
            "model file's, or else the dataset's own",
        )  # fmt: skip
    parser.add_argument(
        "--channel-order", choices=("rgb", "bgr"), help="default: the model file's, or else rgb"
    )


def load_images(
    arguments: argparse.Namespace, images: ImageInput | None, image_size: int | None
) -> Splits:
    """Read the dataset that the arguments name, with the normalisation that a model takes.

    What the command line says comes first, then the model's record, then the dataset's own
    statistics, which is said where the images are of a folder of the user's.

    Args:
        arguments: with ``data`` and those of :func:`add_data_arguments`.
        images: of the model's record.
        image_size: side of the images in pixels; None for the dataset's own.

    Raises:
        ConfigError: for a mean without a deviation, or numbers that cannot be.
        DataError: for a dataset that is missing.
    """
    from snello.lab.datasets import load_dataset

    mean, std = _numbers(arguments, "mean"), _numbers(arguments, "std")
    if (mean is None) != (std is None):
        raise ConfigError("--mean and --std belong together: give both or neither")
    if mean is None and images is not None:
        mean, std = images.mean, images.std
    recorded: Literal["rgb", "bgr"] = "bgr" if images and images.colours == "bgr" else "rgb"
    order: Literal["rgb", "bgr"] = arguments.channel_order or recorded
    splits = load_dataset(
        arguments.data, arguments.data_root, image_size=image_size, path=arguments.data_path,
        mean=mean, std=std, order=order,
    )  # fmt: skip
    if mean is None and arguments.data_path is not None:
        _warn(
            f"the model file says no normalisation: {arguments.data_path} is normalised by its own, "
            f"--mean={_text(splits.mean)} --std={_text(splits.std)}; give those that the model was "
            "trained with"
        )
    if images is not None and images.classes and images.classes != splits.classes:
        _warn(
            f"the classes of {splits.name} are {_some(splits.classes)}, the model was trained on "
            f"{_some(images.classes)}: labels are compared by their place"
        )
    return splits


def _numbers(arguments: argparse.Namespace, name: str) -> tuple[float, ...] | None:
    text = getattr(arguments, name)
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--{name}={text!r} must be numbers with commas, as 0.485,0.456,0.406"
        ) from error


def _warn(text: str) -> None:
    print(f"snello: warning: {text}", file=sys.stderr)


def _text(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (f", ... ({len(classes)})" if len(classes) > 3 else "")

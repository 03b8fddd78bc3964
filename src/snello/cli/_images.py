"""Preprocessing of a model's images on the command line: mean, deviation, colours, class names."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from snello.errors import ConfigError

if TYPE_CHECKING:
    from snello.lab.datasets import Splits
    from snello.store import ImageInput, Record

_OPTIONS = ("mean", "std", "channel_order", "class_names")


def add_image_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options for the normalisation, the order of channels and the names of the classes."""
    for name, text in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}", help=f"{text} per channel of pixels in 0 ... 1, like 0.5,0.5,0.5; default: the "
            "model file's",
        )  # fmt: skip
    parser.add_argument(
        "--channel-order", choices=("rgb", "bgr"), help="default: the model file's, or rgb"
    )
    parser.add_argument(
        "--class-names", help="names of the classes by label: comma-separated, or a text file with "
        "one name per line; default: the model file's",
    )  # fmt: skip


def described(record: Record, arguments: argparse.Namespace) -> Record:
    """A record with the preprocessing given on the command line, to be used and saved.

    Raises:
        ConfigError: as for `given_images`.
    """
    if not any(getattr(arguments, name, None) for name in _OPTIONS):
        return record
    images = given_images(arguments, record.images, record.input_shape)
    return record if images is None else replace(record, images=images)


def given_images(
    arguments: argparse.Namespace, images: ImageInput | None, shape: tuple[int, ...]
) -> ImageInput | None:
    """Preprocessing of the command line, completed by that of a model file.

    Args:
        arguments: with the options of `add_image_arguments`.
        images: preprocessing of the model file; None if it has none.
        shape: shape of one input, without the batch dimension.

    Returns:
        The preprocessing; None if the normalisation is unknown.

    Raises:
        ConfigError: for a mean without a deviation, values that are not numbers, a wrong number of
            values, names of classes without a normalisation, or a model that takes no images.
    """
    from snello.errors import ModelError
    from snello.store import ImageInput

    mean, std = _numbers(arguments.mean, "mean"), _numbers(arguments.std, "std")
    if (mean is None) != (std is None):
        raise ConfigError("--mean and --std belong together: give both or neither")
    if mean is not None and max(mean) > 1:
        raise ConfigError(
            f"--mean={arguments.mean}: pixels are in 0 ... 1 here: divide mean and deviation by 255"
        )
    names = _names(arguments.class_names)
    if mean is None and images is None:
        if names:
            raise ConfigError(
                "--class-names is saved with the normalisation, and the model file has none: give "
                "--mean and --std too"
            )
        return None
    if len(shape) != 3:
        raise ConfigError(
            f"--mean and --std describe images, and the model takes inputs of shape {shape}"
        )
    if mean is None or std is None:
        assert images is not None
        mean, std = images.mean, images.std
    colours = images.colours if images is not None else "grey" if shape[0] == 1 else "rgb"
    if arguments.channel_order and shape[0] != 1:
        colours = arguments.channel_order
    try:
        return ImageInput(
            mean, std, colours, names or (images.classes if images is not None else ())
        )
    except ModelError as error:
        raise ConfigError(f"--mean and --std: {error}") from error


def with_classes(record: Record, splits: Splits) -> Record:
    """A record with the dataset's names of classes, if it has a normalisation and no names."""
    if record.images is None or record.images.classes:
        return record
    return replace(record, images=replace(record.images, classes=splits.classes))


def fitted(record: Record, splits: Splits) -> Record:
    """The record of a network that is fitted to a dataset, with its normalisation and classes.

    A normalisation that the record has stays.
    """
    from snello.lab.training import image_input

    record = with_classes(record, splits)
    return record if record.images is not None else replace(record, images=image_input(splits))


def _numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--{name}={text!r} must be numbers separated by commas, such as 0.485,0.456,0.406"
        ) from error


def _names(text: str | None) -> tuple[str, ...]:
    if not text:
        return ()
    if Path(text).is_file():
        try:
            words = Path(text).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--class-names={text} cannot be read: {error}") from error
    else:
        words = text.split(",")
        if len(words) == 1:
            raise ConfigError(
                f"--class-names={text!r} is neither a file nor names separated by commas"
            )
    return tuple(word.strip() for word in words if word.strip())

"""Calibration inputs for int8 quantisation."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from snello.errors import ConfigError

from ._data import add_data_arguments, add_dataset_argument, batches_of, load_images
from ._inputs import warn

if TYPE_CHECKING:
    from torch import Tensor

    from snello.store import ImageInput

BATCH = 50
CALIBRATION = ("--data", "--data-root", "--data-path", "--image-size", "--samples")
"""Options that choose the calibration inputs."""


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the calibration dataset and the number of samples."""
    group = parser.add_argument_group("calibration of int8")
    add_dataset_argument(group, "; default: random inputs")
    add_data_arguments(group)
    group.add_argument(
        "--samples", type=int, default=500, help="number of training images; default: 500"
    )


def check_samples(arguments: argparse.Namespace) -> None:
    """Check the number of samples.

    Raises:
        ConfigError: for fewer than one.
    """
    if arguments.samples < 1:
        raise ConfigError(
            f"--samples={arguments.samples}: choose at least 1, 100 or more for real use"
        )


def warn_random() -> None:
    """Warn that int8 is calibrated on random inputs."""
    warn(
        "int8 is calibrated on random inputs, whose ranges differ from real ones: valid for timing, not "
        "for accuracy; choose a dataset with --data"
    )


def calibration(
    input_shape: tuple[int, ...],
    arguments: argparse.Namespace,
    images: ImageInput | None = None,
) -> tuple[list[Tensor], str]:
    """Batches of calibration inputs and a description of their origin.

    Without a dataset the inputs are random, with a warning.

    Args:
        input_shape: shape of one input of the model, without the batch dimension.
        arguments: the options of `add_calibration_arguments`.
        images: preprocessing of the model's record; None if it has none.

    Returns:
        Batches (B, *input_shape), and the origin as text.

    Raises:
        ConfigError: for fewer than one sample.
        ModelError: if the images do not fit the model.
        DataError: if the dataset is missing.
    """
    check_samples(arguments)
    if arguments.data is None:
        import torch

        warn_random()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(arguments.samples, *input_shape, generator=generator)
        return [noise[i : i + BATCH] for i in range(0, len(noise), BATCH)], "random inputs"
    splits = load_images(arguments, images, input_shape)
    batches = batches_of(splits.train, splits, BATCH, limit=arguments.samples)
    return [x for x, _ in batches], f"{arguments.data}, training part"

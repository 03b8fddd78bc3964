"""Inputs that int8 ranges are taken from."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from snello.errors import ConfigError

from ._data import add_data_arguments

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 50


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """A dataset, and how much of it."""
    group = parser.add_argument_group("calibration of int8")
    group.add_argument(
        "--data", help="digits, mnist, cifar10 or imagefolder; random inputs without it"
    )
    add_data_arguments(group)
    group.add_argument(
        "--samples", type=int, default=500, help="training images, or random inputs; default: 500"
    )


def warn_random() -> None:
    """Say that no dataset was named."""
    print(
        "snello: warning: int8 is calibrated on random inputs, whose ranges are not those of real ones: good for "
        "timing, not for accuracy; name a dataset with --data",
        file=sys.stderr,
    )


def calibration(
    input_shape: tuple[int, ...], arguments: argparse.Namespace
) -> tuple[list[Tensor], str]:
    """Batches of inputs, and where they are from.

    Without a dataset they are random, and a warning says so.

    Args:
        input_shape: of one input of the model.
        arguments: those of :func:`add_calibration_arguments`.

    Raises:
        ConfigError: for fewer than one sample, or images that the model does not take.
        DataError: for a dataset that is missing.
    """
    if arguments.samples < 1:
        raise ConfigError(
            f"--samples={arguments.samples}: choose at least 1, 100 or more for real use"
        )
    if arguments.data is None:
        import torch

        warn_random()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(arguments.samples, *input_shape, generator=generator)
        return [noise[i : i + BATCH] for i in range(0, len(noise), BATCH)], "random inputs"
    from snello.lab.datasets import load_dataset, loader

    splits = load_dataset(
        arguments.data,
        arguments.data_root,
        image_size=arguments.image_size,
        path=arguments.data_path,
    )
    if splits.input_shape != tuple(input_shape):
        raise ConfigError(
            f"the model takes images of {tuple(input_shape)}, those of {arguments.data} are "
            f"{splits.input_shape}: choose another --data or --image-size"
        )
    images = loader(splits.train, splits, BATCH, limit=arguments.samples)
    return [x for x, _ in images], f"{arguments.data}, training part"

"""Rate search of ``snello compress``: the coarsest quantisation that keeps a bound."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from snello.errors import ConfigError, ModelError

from ._data import add_data_arguments

if TYPE_CHECKING:
    from torch import nn

    from snello.codec import CodecSettings
    from snello.lab.datasets import Splits
    from snello.search.rate import RateSearch
    from snello.store import Record

BATCH = 250


def add_rate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a bound and of the data that it is measured on."""
    group = parser.add_argument_group(
        "search for the smallest bitstream",
        "instead of --qp: the coarsest quantisation that keeps the bound",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        help="how much worse the decoded model may be on validation images: 0.002 is 0.2 points of accuracy",
    )
    group.add_argument(
        "--metric",
        choices=("accuracy", "loss"),
        default="accuracy",
        help="of what; default: accuracy",
    )
    group.add_argument("--data", help="digits, mnist, cifar10 or imagefolder")
    add_data_arguments(group)
    group.add_argument(
        "--validation-images",
        type=int,
        default=5000,
        help="at most so many, not from the test set; default: 5000",
    )
    group.add_argument(
        "--calibration-images",
        type=int,
        default=512,
        help="training images, without labels; default: 512",
    )
    group.add_argument(
        "--one-qp", action="store_true", help="one quantisation parameter for all weights"
    )


def search(arguments: argparse.Namespace, model: nn.Module, record: Record) -> RateSearch:
    """Search as the arguments say.

    ``--uniform`` tries no dependent quantisation, so that zeros stay zero.

    Args:
        arguments: of a parser with :func:`add_rate_arguments`, and the coder's own options.
        model: the model to code, on the device where it is to be evaluated.
        record: its record; the shape of its input is that of the images.

    Returns:
        The model to code (``.model``, which may be a folded copy) and its ``.settings``.

    Raises:
        ConfigError: without ``--data``, for an impossible number of images, or a bound that cannot
            be kept.
        ModelError: if the images do not fit the model.
        DataError: for a dataset that is missing.
    """
    from snello.lab.datasets import loader
    from snello.lab.training import check_fits
    from snello.search.rate import search_rate

    if not arguments.data:
        raise ConfigError(
            "--max-drop needs data to measure on: name a dataset with --data, as --data=cifar10"
        )
    for option in ("validation_images", "calibration_images"):
        if getattr(arguments, option) < 1:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(f"{flag}={getattr(arguments, option)}: at least 1 image is needed")
    splits = splits_for(arguments, record)
    check_fits(record.model.name, model, splits)
    batches = loader(
        splits.train, splits, BATCH, shuffle=True, seed=0, limit=arguments.calibration_images
    )
    device = next((p.device for p in model.parameters()), None)
    return search_rate(
        model,
        _Metric(splits, arguments.metric, arguments.validation_images),
        max_drop=arguments.max_drop,
        higher_is_better=arguments.metric == "accuracy",
        calibration=[images.to(device, record.dtype) for images, _ in batches],
        per_tensor=not arguments.one_qp,
        keep_zeros=arguments.uniform,
        settings=_settings(arguments),
    )


def splits_for(arguments: argparse.Namespace, record: Record) -> Splits:
    """Read the dataset that the arguments name, at the image size of a model.

    Raises:
        ModelError: if the images have another shape than the model takes.
        DataError: for a dataset that is missing.
    """
    from snello.lab.datasets import load_dataset

    splits = load_dataset(
        arguments.data,
        arguments.data_root,
        path=arguments.data_path,
        image_size=_image_size(arguments, record),
    )
    if splits.input_shape != tuple(record.input_shape):
        raise ModelError(
            f"the images of {splits.name!r} have the shape {splits.input_shape}, the model takes "
            f"{tuple(record.input_shape)}; name the dataset that it was trained on with --data, and --image-size if "
            "its images were resized"
        )
    return splits


def _image_size(arguments: argparse.Namespace, record: Record) -> int | None:
    """Image size asked for, or the model's own where a dataset leaves the choice."""
    from snello.lab.datasets import FIXED_SIZE

    if arguments.image_size is not None:
        return int(arguments.image_size)
    # Digits would run on MNIST if its images were shrunk without being asked.
    return None if arguments.data in FIXED_SIZE else record.input_shape[-1]


def _settings(arguments: argparse.Namespace) -> CodecSettings:
    from snello.codec import CodecSettings

    return CodecSettings(
        nonweight_qp=arguments.nonweight_qp,
        dependent_quantisation=not arguments.uniform,
        codebook=arguments.codebook,
    )


class _Metric:
    """Accuracy or loss on the validation images."""

    def __init__(self, splits: Splits, metric: str, limit: int) -> None:
        from snello.lab.datasets import loader

        self._batches = list(loader(splits.validation, splits, BATCH, limit=limit))
        self._metric = metric

    def __call__(self, model: nn.Module) -> float:
        from snello.lab.training import evaluate

        return float(getattr(evaluate(model, self._batches), self._metric))

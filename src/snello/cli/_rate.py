"""Rate search of `snello compress`: the coarsest quantisation within a bound on accuracy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ._data import (
    add_data_arguments,
    add_dataset_argument,
    batches_of,
    check_image_counts,
    load_images,
    require_data,
    warn_if_few,
    warn_if_seen,
)
from ._inputs import check_one_input

if TYPE_CHECKING:
    from torch import nn

    from snello.codec import CodecSettings
    from snello.lab.datasets import Splits
    from snello.search.rate import RateSearch
    from snello.store import Record

BATCH = 250
SEARCH = (
    "--metric", "--data", "--data-root", "--data-path", "--image-size", "--validation-path", "--validation-images",
    "--calibration-images", "--one-qp",
)  # fmt: skip
"""Options of the search, without its bound."""


def add_rate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the bound and for the data to measure it on."""
    group = parser.add_argument_group(
        "search for the smallest bitstream",
        "instead of --qp: search for the coarsest quantisation within the bound",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        help="largest drop on validation images after decoding: 0.002 is 0.2 points of accuracy",
    )
    group.add_argument(
        "--metric",
        choices=("accuracy", "loss"),
        default="accuracy",
        help="metric that --max-drop bounds; default: accuracy",
    )
    add_dataset_argument(group, "; default: that of the recipe beside the model")
    add_data_arguments(group, judged=True)
    group.add_argument(
        "--validation-images",
        type=int,
        default=5000,
        help="number of validation images, at most; default: 5000",
    )
    group.add_argument(
        "--calibration-images",
        type=int,
        default=512,
        help="number of training images, used without labels; default: 512",
    )
    group.add_argument(
        "--one-qp", action="store_true", help="one quantisation parameter for all weights"
    )


def search_images(arguments: argparse.Namespace, model: nn.Module, record: Record) -> Splits:
    """Read and check the images that the bound is measured on.

    Args:
        arguments: the options of `add_rate_arguments`.
        model: the model to code.
        record: its record, with the shape and the preprocessing of its images.

    Raises:
        ConfigError: without `--data`, or for a number of images below 1.
        ModelError: if the images do not fit the model.
        DataError: if the dataset is missing.
    """
    from snello.lab.training import check_fits

    file = getattr(arguments, "file", None)
    require_data(arguments, file, "--max-drop needs data to measure on")
    check_image_counts(arguments, "validation_images", "calibration_images")
    check_one_input(record, "--max-drop")
    splits = load_images(arguments, record.images, record.input_shape)
    check_fits(record.model.name, model, splits)
    warn_if_seen(arguments, splits)
    if arguments.metric == "accuracy" and splits.task == "classification":
        warn_if_few(min(len(splits.validation), arguments.validation_images), arguments.max_drop)
    return splits


def search(
    arguments: argparse.Namespace, model: nn.Module, record: Record, splits: Splits
) -> RateSearch:
    """Run the rate search with the options of the command line.

    With `--uniform`, dependent quantisation is not tried, so that zeros stay exactly zero.

    Args:
        arguments: the options of `add_rate_arguments` and of the codec.
        model: the model to code, on the device to evaluate it on.
        record: its record, with the dtype of its inputs.
        splits: the images, of `search_images`.

    Returns:
        The search result; `.model` is the model to code (possibly a folded copy) and
        `.settings` its codec settings.

    Raises:
        ConfigError: for a bound that cannot be met.
    """
    from snello.search.rate import search_rate

    batches = batches_of(
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
        settings=codec_settings(arguments),
    )


def codec_settings(arguments: argparse.Namespace) -> CodecSettings:
    """The codec's options of the command line, apart from `--qp`."""
    from snello.codec import CodecSettings

    return CodecSettings(
        nonweight_qp=arguments.nonweight_qp,
        dependent_quantisation=not arguments.uniform,
        codebook=arguments.codebook,
    )


class _Metric:
    """Accuracy (mean IoU for segmentation) or loss on the validation images."""

    def __init__(self, splits: Splits, metric: str, limit: int) -> None:
        self._batches = list(batches_of(splits.validation, splits, BATCH, limit=limit))
        self._splits, self._metric = splits, metric

    def __call__(self, model: nn.Module) -> float:
        from snello.lab.training import evaluate_on

        return float(getattr(evaluate_on(self._splits, model, self._batches), self._metric))

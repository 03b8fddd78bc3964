"""Datasets of the command line: options, and images as a model takes them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError, ModelError
from snello.files import read_json_object

from ._images import add_image_arguments, given_images
from ._inputs import joined, warn
from ._names import complete_with, datasets

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snello.lab.datasets import Part, Splits
    from snello.store import ImageInput, Record

NOTE = "recipe.json"
"""File with the recipe of a run, in the folder of its model."""


def add_dataset_argument(parser: argparse._ActionsContainer, default: str = "") -> None:
    """Add `--data`, whose names a shell completes.

    Args:
        parser: the parser or group of options.
        default: the rest of the help: what holds without the option.
    """
    names = datasets()
    complete_with(parser.add_argument("--data", help=f"one of: {', '.join(names)}{default}"), names)


def check_image_counts(arguments: argparse.Namespace, *options: str) -> None:
    """Refuse options that ask for less than one image.

    Raises:
        ConfigError: naming the option.
    """
    for option in options:
        if (count := getattr(arguments, option)) < 1:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(f"{flag}={count}: at least 1 image is needed")


def check_drop(arguments: argparse.Namespace) -> None:
    """Refuse a bound on the drop of an accuracy that is none.

    Raises:
        ConfigError: for a drop outside [0, 1].
    """
    if arguments.max_drop is not None and not 0 <= arguments.max_drop <= 1:
        raise ConfigError(
            f"--max-drop={arguments.max_drop:g}: the largest drop of the accuracy, in [0, 1]: 0.01 is one point"
        )


def add_data_arguments(
    parser: argparse._ActionsContainer, *, trained: bool = True, judged: bool = False
) -> None:
    """Add the options for a dataset's folder, an image folder and the size of the images.

    Args:
        parser: the parser or group of options.
        trained: also add the preprocessing, which a trained network requires.
        judged: also add a folder of validation images.
    """
    parser.add_argument(
        "--data-root", help="folder with the dataset; default: $SNELLO_DATA, else ./data"
    )
    parser.add_argument("--data-path", help="the image folder, for imagefolder")
    parser.add_argument(
        "--image-size", type=int, help="resize the images to this many pixels a side"
    )
    if judged:
        parser.add_argument(
            "--validation-path", metavar="FOLDER", help="labelled images to measure on, a folder per class; "
            "default: the dataset's validation part, often a share of its training images",
        )  # fmt: skip
    if trained:
        add_image_arguments(parser)


def load_images(
    arguments: argparse.Namespace,
    images: ImageInput | None,
    shape: tuple[int, ...],
    cache: dict[tuple[int | None, bool], Splits] | None = None,
) -> Splits:
    """Read the dataset given by the arguments, with the preprocessing that a model requires.

    Options of the command line take precedence over the model's record, and that over the
    dataset's own statistics; these are used with a warning for a folder of the user's.

    Args:
        arguments: with `data` and the options of `add_data_arguments`.
        images: preprocessing of the model's record; None if it has none.
        shape: shape of one input of the model, for datasets without a fixed size.
        cache: datasets already read, by the size of their images and whether they are grey; extended
            by this one.

    Raises:
        ConfigError: for options that contradict each other or are out of range.
        ModelError: if the shape of the images differs from the model's input shape.
        DataError: if the dataset is missing.
    """
    from snello.lab.datasets import WITH_PATH, normalised

    if arguments.data in WITH_PATH and arguments.data_path is None:
        raise ConfigError(
            f"--data={arguments.data} needs the folder of its images: --data-path=FOLDER"
        )
    images = given_images(arguments, images, shape)
    order = arguments.channel_order or (images.colours if images is not None else "rgb")
    # Files may be coloured or grey whatever the network takes; other datasets are what they are.
    grey = arguments.data in WITH_PATH and tuple(shape[:1]) == (1,)
    cache, size = {} if cache is None else cache, _size(arguments, shape)
    if (size, grey) not in cache:
        cache[size, grey] = _read(arguments, size, grey)
    splits = replace(cache[size, grey], order="bgr" if order == "bgr" else "rgb")
    if splits.input_shape != tuple(shape):
        raise ModelError(
            f"the images of {splits.name!r} have the shape {splits.input_shape}, the model takes "
            f"{tuple(shape)}; choose the dataset that it was trained on with --data, and --image-size if its "
            "images were resized"
        )
    if images is not None:
        splits = normalised(splits, images.mean, images.std)
    _warn_of_guesses(arguments, images, splits)
    return splits


def _read(arguments: argparse.Namespace, image_size: int | None, grey: bool) -> Splits:
    from snello.lab.datasets import load_dataset

    return load_dataset(
        arguments.data, arguments.data_root, image_size=image_size, path=arguments.data_path,
        order="grey" if grey else "rgb", validation_path=getattr(arguments, "validation_path", None),
        **getattr(arguments, "split", {}),
    )  # fmt: skip


def require_data(arguments: argparse.Namespace, file: str | Path | None, why: str) -> None:
    """Require a dataset, of the command line or of the recipe beside a model file.

    Args:
        arguments: as for `use_recipe_beside`; changed in place.
        file: the model file; None for an architecture.
        why: the need, such as "prune needs data to measure on".

    Raises:
        ConfigError: if neither names a dataset.
    """
    use_recipe_beside(arguments, file)
    if not arguments.data:
        raise ConfigError(f"{why}: choose a dataset, such as --data=cifar10")


def use_recipe_beside(arguments: argparse.Namespace, file: str | Path | None) -> None:
    """Complete the dataset's options by the recipe of the run that a model file belongs to.

    The recipe also gives the share and the seed by which the validation images were held out, so
    that the same images are measured on, and the augmentation for fine-tuning.

    Args:
        arguments: with `data` and the options of `add_data_arguments`; changed in place.
        file: the model file; None for an architecture.
    """
    recipe = _recipe_beside(file)
    data = recipe.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return
    options = {"data": "name", "data_root": "root", "data_path": "path", "image_size": "image_size"}
    if arguments.data is None:
        for option, field in options.items():
            if getattr(arguments, option) is None:
                setattr(arguments, option, data.get(field))
        warn(f"data as in {Path(str(file)).parent / NOTE}: {arguments.data}", "note")
    same_path = arguments.data_path is None or _same(arguments.data_path, data.get("path"))
    if arguments.data == data["name"] and same_path:
        share, seed = data.get("validation"), recipe.get("seed")
        if isinstance(share, float) and isinstance(seed, int) and 0 < share < 1:
            arguments.split = {"validation": share, "seed": seed}
        if getattr(arguments, "augment", "") is None and isinstance(data.get("augment"), str):
            arguments.augment = data["augment"]


def warn_if_seen(arguments: argparse.Namespace, splits: Splits) -> None:
    """Warn if a network may have been trained on the validation images.

    The recipe beside a model says which images were held out; otherwise, images cut from the
    training part of a dataset may have been seen.
    """
    if splits.apart or getattr(arguments, "split", None):
        return
    warn(
        f"the validation images ({len(splits.validation)}) are cut from the training images of "
        f"{splits.name}: if the model was trained on them, its accuracy there is higher than on new "
        "images; give labelled images that it was not trained on with --validation-path=FOLDER"
    )


def warn_if_few(samples: int, bound: float) -> None:
    """Warn of a bound that is smaller than what goes unseen among so few samples."""
    if 0 < samples * bound < 3:
        warn(
            f"{samples} samples are few for a drop of {bound:g}: where none of them changes, a share of "
            f"{3 / samples:.2g} may still change among others (3 / n, at 95 %); give at least "
            f"{math.ceil(3 / bound)}"
        )


def batches_of(
    part: Part, splits: Splits, batch: int, **options: Any
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of a part, all of the shape that a model takes.

    Args:
        part: one of the dataset's parts.
        splits: the dataset.
        batch: images per batch of a classifier. For segmentation, whose images are evaluated whole
            and differ in size, every batch is the centre of one image: an exported file has a fixed
            size.
        options: further options of [`snello.lab.datasets.loader`][].
    """
    from snello.lab.datasets import loader

    if splits.task == "classification":
        return loader(part, splits, batch, **options)
    side = splits.input_shape[1]
    whole = loader(part, splits, 1, **options)
    return ((_centre(image, side), _centre(mask, side)) for image, mask in whole)


def classifier_images(
    arguments: argparse.Namespace, model: nn.Module, record: Record, command: str
) -> Splits:
    """Read the images of a classifier, as `load_images`, and check that they fit it.

    Raises:
        ConfigError: also for a dataset for segmentation.
        ModelError: also if the model does not run on the images.
        DataError: also for a dataset of one class.
    """
    from snello.lab.training import check_fits

    splits = load_images(arguments, record.images, record.input_shape)
    if splits.task != "classification":
        raise ConfigError(f"{command} takes classifiers, and {splits.name} is for {splits.task}")
    check_fits(record.model.name, model, splits)
    return splits


def _centre(pixels: Tensor, side: int) -> Tensor:
    top, left = ((size - side) // 2 for size in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def _size(arguments: argparse.Namespace, shape: tuple[int, ...]) -> int | None:
    from snello.lab.datasets import FIXED_SIZE

    if arguments.image_size is not None:
        return int(arguments.image_size)
    # Resizing a fixed-size dataset silently would let a digits model run on MNIST.
    return None if arguments.data in FIXED_SIZE or not shape else shape[-1]


def _warn_of_guesses(
    arguments: argparse.Namespace, images: ImageInput | None, splits: Splits
) -> None:
    """Warn of a normalisation that is not the model's, and of other classes."""
    if images is None and arguments.data_path is not None:
        warn(
            f"the model file has no normalisation: the images of {arguments.data_path} are normalised by "
            f"--mean={joined(splits.mean)} --std={joined(splits.std)}; give those that the model was "
            "trained with"
        )
    if images is not None and images.classes and images.classes != splits.classes:
        warn(
            f"the classes of {splits.name} are {_some(splits.classes)}, those of the model "
            f"{_some(images.classes)}: labels are compared by position"
        )


def _recipe_beside(file: str | Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return read_json_object(Path(file).parent / NOTE)
    except ConfigError:
        return {}  # no run, or a damaged note: the options are used as they are


def _same(path: str, other: object) -> bool:
    return isinstance(other, str) and Path(path).resolve() == Path(other).resolve()


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (f", ... ({len(classes)})" if len(classes) > 3 else "")

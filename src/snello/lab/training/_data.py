"""Data of a recipe and its initial network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snello.curation import DynamicSubset, InfoBatch, Kept, OrderDP, RandomSubset
from snello.errors import ConfigError, DataError, ModelError, reason_of
from snello.graph import scores_of
from snello.lab.datasets import Part, Splits, load_dataset, loader
from snello.lab.recipes import Recipe
from snello.store import ImageInput, build, load_weights

from ._distributed import World, share_of

EVALUATED = 500
"""Batch size of an evaluation on small images, where no activations are kept for gradients."""


def load_data(recipe: Recipe) -> Splits:
    """Load the dataset of a recipe, with the errors of [`snello.lab.datasets.load_dataset`][]."""
    data = recipe.data
    return load_dataset(
        data.name,
        data.root,
        validation=data.validation,
        seed=recipe.seed,
        image_size=data.image_size,
        download=data.download,
        path=data.path,
        mean=data.mean,
        std=data.std,
        order=data.order or "rgb",
    )


def image_input(splits: Splits) -> ImageInput:
    """Preprocessing and classes of a dataset, for the record of a network trained on it."""
    return ImageInput(splits.mean, splits.std, splits.colours, splits.classes)


def initial_model(recipe: Recipe, splits: Splits) -> nn.Module:
    """The recipe's network with its initial weights, checked against the data.

    Raises:
        ModelError: if the network does not run on the images, or its number of outputs differs from
            the number of classes.
    """
    torch.manual_seed(recipe.seed)
    model = build(recipe.model)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    check_fits(recipe.model.name, model.eval(), splits)
    return model.train()


def check_fits(name: str, model: nn.Module, splits: Splits) -> None:
    """Check that a model runs on the images of a dataset and has an output for every class.

    Args:
        name: of the model, for messages.
        model: in evaluation mode, on any device.
        splits: the data.

    Raises:
        ModelError: if the model fails on the images or has a wrong output shape.
        DataError: if the dataset has a single class.
    """
    if len(splits.classes) < 2:
        raise DataError(
            f"{splits.name} ({splits.source}) has only the class {splits.classes[0]!r}: a "
            "classifier needs two classes or more, each in a folder of its own"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = torch.zeros(2, *splits.input_shape, device=device)
    try:
        with torch.no_grad():
            outputs = model(images)
    except Exception as error:  # the model may be the user's own: it may raise anything
        raise ModelError(
            f"model {name!r} does not run on images of shape {splits.input_shape}: {reason_of(error)}"
        ) from error
    _check_outputs(name, _scores(outputs), splits)


def _scores(outputs: Any) -> Any:
    """Scores of the outputs; the outputs themselves if they have none."""
    try:
        return scores_of(outputs)
    except ConfigError:
        return outputs


def _check_outputs(name: str, outputs: Any, splits: Splits) -> None:
    classes = len(splits.classes)
    expected: tuple[int, ...] = (2, classes)
    if splits.task == "segmentation":
        expected = (*expected, *splits.input_shape[1:])
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f"model {name!r} gives {shape} for two images of {splits.name}, "
            f"which has {classes} classes: expected {expected}"
            + (
                ", a score for each class, not one for both"
                if shape == (2, 1) and classes == 2
                else ""
            )
        )


class Batches:
    """Data loaders of a dataset's parts, split across the processes of a run.

    Attributes:
        train: this process's share of every training batch, shuffled and augmented.
        validation: this process's share of the validation images; all shares have equal size.
        test: all test images, for the single process that tests.
        keep: the dynamic subset behind `train`; None without curation. Its batches are pairs of a
            batch and the indices of the images.

    Args:
        recipe: options of the data, the curation and the seed.
        splits: the dataset.
        world: rank and number of the processes.
        always: number of first training images that curation never leaves out.

    Raises:
        ConfigError: if the batch cannot be split evenly over the processes, or an option of
            [`snello.lab.datasets.loader`][] is out of range.
        DataError: for an index file of another dataset.
    """

    def __init__(self, recipe: Recipe, splits: Splits, world: World, *, always: int = 0) -> None:
        self._recipe, self._splits = recipe, splits
        data = recipe.data
        self.batch_size = share_of(data.batch_size, world.size)
        places = {"replicas": world.size, "rank": world.rank}
        self._train_part = _kept_part(recipe, splits)
        curated = recipe.curation.method != "none"
        curate = partial(subset_of, recipe, always=always) if curated else None
        self.train = self._loader(
            self._train_part, self.batch_size,
            shuffle=True, seed=recipe.seed, augment=data.augment, limit=data.limit, curate=curate, **places,
        )  # fmt: skip
        self.keep: DynamicSubset | None = self.train.dataset if curated else None
        few, size = data.test_limit, evaluated_together(splits, self.batch_size)
        self.validation = self._loader(splits.validation, size, limit=few, **places)
        self.test = self._loader(splits.test, size, limit=few)

    def _loader(self, part: Part, batch_size: int, **options: Any) -> Any:
        if self._recipe.data.workers:
            options["workers"] = self._recipe.data.workers
        return loader(part, self._splits, batch_size, **options)

    def sample(self, images: int | None = None) -> tuple[Tensor, Tensor]:
        """The first training images and their targets, with the evaluation transforms.

        Args:
            images: number of images; None: one batch.

        Returns:
            Images (B, channels, H, W) and targets: labels (B,) or label maps (B, H, W).
        """
        count = images or self.batch_size
        part = loader(self._train_part, self._splits, count, limit=count)
        first: tuple[Tensor, Tensor] = next(iter(part))
        return first


def evaluated_together(splits: Splits, batch_size: int) -> int:
    """Batch size of an evaluation; large images keep the training batch size, to fit memory."""
    if splits.task == "segmentation":
        return 1  # uncropped images differ in size: stacked, they would be padded
    height, width = splits.input_shape[1:]
    return max(batch_size, EVALUATED) if height * width <= 64 * 64 else batch_size


def images_used(recipe: Recipe, splits: Splits) -> tuple[int, int, int]:
    """Numbers of training, validation and test images: those kept, within the recipe's limits."""
    data = recipe.data
    kept = len(splits.train) if data.kept is None else len(Kept.load(data.kept).indices)

    def within(limit: int | None, count: int) -> int:
        return count if limit is None else min(count, limit)

    validation, test = (
        within(data.test_limit, len(part)) for part in (splits.validation, splits.test)
    )
    return within(data.limit, kept), validation, test


def guessed_among(splits: Splits) -> int | None:
    """Number of classes that chance chooses from; None for mean IoU, which has no chance level."""
    return len(splits.classes) if splits.task == "classification" else None


def subset_of(recipe: Recipe, images: Any, always: int = 0) -> DynamicSubset:
    """The dynamic subset of a recipe's training images.

    Args:
        recipe: with another curation than "none".
        images: a map-style dataset.
        always: number of first images that are never left out.
    """
    config = recipe.curation
    common: dict[str, Any] = {
        "seed": recipe.seed, "always": range(min(always, len(images)))
    }  # fmt: skip
    if config.method == "random":
        return RandomSubset(images, config.ratio, replacement=config.replacement, **common)
    if config.method == "orderdp":
        return OrderDP(images, config.ratio, pool=config.pool, **common)
    return InfoBatch(
        images, config.ratio, epochs=recipe.epochs, anneal=config.anneal, window=config.window,
        rescaling=config.rescaling, **common,
    )  # fmt: skip


def _kept_part(recipe: Recipe, splits: Splits) -> Part:
    if recipe.data.kept is None:
        return splits.train
    kept = Kept.load(recipe.data.kept)
    labels = splits.train.labels if splits.task == "classification" else None
    kept.check(len(splits.train), labels)
    return splits.train.subset(kept.indices)

"""Bitstream of a trained network: the coarsest quantisation within a bound on the drop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snello import __version__
from snello.codec import CodecSettings
from snello.errors import ConfigError
from snello.files import read_json, sha256_of, write_text
from snello.lab.datasets import Splits, loader
from snello.lab.recipes import Recipe
from snello.search.rate import search_rate
from snello.search.shrink import Judge
from snello.store import Record, save

from ._data import evaluated_together
from ._evaluate import answers, evaluate_on
from ._result import MODEL

STREAM, CODING = "model.snello", "coding.json"
"""The bitstream in a run's folder, and what it was coded from."""
CALIBRATION = 256
"""Training images, without labels, on which the cost of quantising each tensor is estimated."""


def coded(recipe: Recipe, folder: Path, model: nn.Module, record: Record, splits: Splits) -> Path:
    """Code the simplified network of a finished run, unless its folder has that bitstream.

    The search is the slowest step after the training: a journey that was interrupted after it keeps
    its result, as long as the trained weights and the recipe's bound are the same.

    Args:
        recipe: the recipe.
        folder: the run's folder, with its trained model file.
        model: the simplified network.
        record: its record.
        splits: the dataset.

    Returns:
        The bitstream's path.

    Raises:
        ConfigError: if even the finest quantisation exceeds the bound.
    """
    path, log = folder / STREAM, folder / CODING
    ship = recipe.ship
    source = {
        "snello": __version__, "model": sha256_of(folder / MODEL), "max_drop": ship.max_drop,
        "validation_images": ship.validation_images, "qp": ship.qp,
    }  # fmt: skip
    if content_of(log) != source | {"stream": sha256_of(path) if path.is_file() else None}:
        chosen, settings = coding_of(recipe, model, record, splits)
        save(path, chosen, record, settings=settings, trust=recipe.model.name)
        write_text(log, json.dumps(source | {"stream": sha256_of(path)}, indent=1))
    return path


def content_of(note: Path) -> Any:
    """The content of a JSON file that says what another file was made of; None if it is damaged."""
    try:
        return read_json(note)
    except ConfigError:
        return None


def coding_of(
    recipe: Recipe, model: nn.Module, record: Record, splits: Splits
) -> tuple[nn.Module, CodecSettings]:
    """Choose how a network is coded: with the recipe's QP, or by a rate search.

    The search measures on the images of `measured_on`; test images play no part.

    Args:
        recipe: its `ship` block has the bound or the QP.
        model: the network, which is not changed.
        record: its record, with the dtype of its inputs.
        splits: the dataset.

    Returns:
        The network to code, which may be a folded copy, and the settings to code it with.

    Raises:
        ConfigError: if even the finest quantisation exceeds the bound.
    """
    ship, fixed = recipe.ship, settings_without_search(recipe)
    if fixed is not None:
        return model, fixed
    images = measured_on(recipe, splits)
    seen = loader(
        splits.train, splits, recipe.data.batch_size, shuffle=True, seed=recipe.seed, limit=CALIBRATION,
        # Only crops are of one size.
        augment="crop-flip" if splits.task == "segmentation" else "none",
    )  # fmt: skip

    def quality(network: nn.Module) -> Any:
        if splits.task == "classification":
            return answers(network, images()).right
        return evaluate_on(splits, network, images()).accuracy

    judge = Judge(quality, model)
    found = search_rate(
        model,
        # The upper limit: of a few hundred images, some are lost and others won by chance.
        lambda decoded: judge(decoded).limit,
        max_drop=ship.max_drop,
        calibration=[batch.to(record.dtype) for batch, _ in seen],
    )
    return found.model, found.settings


def settings_without_search(recipe: Recipe) -> CodecSettings | None:
    """The settings of a recipe that gives the QP; None for a search.

    Raises:
        ConfigError: for a QP out of range.
    """
    return None if recipe.ship.qp is None else CodecSettings(qp=recipe.ship.qp)


def measured_on(recipe: Recipe, splits: Splits) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """The batches on which coding is judged: of validation images, then of training images.

    What coding changes is measured against the same network in float32, so that training images
    count as well. They are taken where there are fewer validation images than the recipe wants:
    no change among nine images says nothing about one in a hundred.
    """
    size = evaluated_together(splits, recipe.data.batch_size)
    count = recipe.ship.validation_images
    parts = [loader(splits.validation, splits, size, limit=count)]
    if (missing := count - len(splits.validation)) > 0:
        more = {"shuffle": True, "seed": recipe.seed, "limit": missing}
        parts.append(loader(splits.train, splits, size, **more))  # type: ignore[arg-type]
    # Read anew each time: thousands of large images do not fit into memory.
    return lambda: chain.from_iterable(parts)

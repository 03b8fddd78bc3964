"""Bitstream of a trained network: the coarsest quantisation within a bound on the drop."""

from __future__ import annotations

from typing import Any

from torch import nn

from snello.codec import CodecSettings
from snello.lab.datasets import Splits, loader
from snello.lab.recipes import Recipe
from snello.search.rate import search_rate
from snello.search.shrink import Judge
from snello.store import Record

from ._evaluate import answers, evaluate

CALIBRATION = 256
"""Training images, without labels, on which the cost of quantising each tensor is estimated."""


def coding_of(
    recipe: Recipe, model: nn.Module, record: Record, splits: Splits
) -> tuple[nn.Module, CodecSettings]:
    """Choose how a network is coded: with the recipe's QP, or by a rate search.

    The search measures on validation images; test images play no part.

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
    ship, size = recipe.ship, recipe.data.batch_size
    if ship.qp is not None:
        return model, CodecSettings(qp=ship.qp)
    images = list(loader(splits.validation, splits, size, limit=ship.validation_images))
    seen = loader(splits.train, splits, size, shuffle=True, seed=recipe.seed, limit=CALIBRATION)

    def quality(network: nn.Module) -> Any:
        if splits.task == "classification":
            return answers(network, images).right
        return evaluate(network, images).accuracy

    judge = Judge(quality, model)
    found = search_rate(
        model,
        # The upper limit: of a few hundred images, some are lost and others won by chance.
        lambda decoded: judge(decoded).limit,
        max_drop=ship.max_drop,
        calibration=[batch.to(record.dtype) for batch, _ in seen],
    )
    return found.model, found.settings

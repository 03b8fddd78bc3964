"""A random subset in every epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snello.errors import check_option

from ._dynamic import DynamicSubset


class RandomSubset(DynamicSubset):
    """Leave out a random share of the samples, another one in every epoch (RS2).

    Without replacement it is the same as fewer epochs: the baseline for every other method at equal
    cost. All weights are 1.

    Args:
        dataset: any map-style dataset.
        ratio: share left out, in [0, 1); the number kept is rounded, and at least that of `always`.
        replacement: draw each epoch's subset from all samples. False: from those that were used
            least, so that all have been used before any is used again.
        options: of [`DynamicSubset`][snello.curation.DynamicSubset]: seed, always, smoothing.

    Raises:
        ConfigError: for a ratio out of range.

    Source: Okanovic et al., "Repeated random sampling for minimizing the time-to-accuracy of
    learning", ICLR 2024, https://arxiv.org/abs/2305.18424
    """

    _by_loss = False

    def __init__(
        self, dataset: Dataset[Any], ratio: float, *, replacement: bool = False, **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self.ratio, self.replacement = checked(ratio), replacement

    def _choose(self, places: Tensor, epoch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        # Uniform numbers break the ties between samples that were used equally often.
        rank = torch.rand(len(places), generator=random, dtype=torch.float64)
        if not self.replacement:
            rank += self._uses[places]
        rank[self._forced[places]] = -1.0
        return lowest(rank, budget(self.ratio, len(places))), self._ones


def checked(ratio: float) -> float:
    """A share to leave out.

    Raises:
        ConfigError: outside of [0, 1).
    """
    check_option(0 <= ratio < 1, f"ratio is the share left out, in [0, 1), not {ratio}")
    return ratio


def budget(ratio: float, samples: int) -> int:
    """Number of samples to keep, at least one."""
    return min(samples, max(1, round((1 - ratio) * samples)))


def lowest(rank: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest numbers of `(M,)`: bool `(M,)`."""
    kept = torch.zeros(len(rank), dtype=torch.bool)
    kept[torch.argsort(rank, stable=True)[:count]] = True
    return kept

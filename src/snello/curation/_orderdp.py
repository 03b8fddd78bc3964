"""OrderDP: the hardest samples of a random pool."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snello.errors import check_option

from ._dynamic import DynamicSubset
from ._random import budget, checked, lowest

POOL = 0.6
"""Samples trained on per sample of the pool, as published."""


class OrderDP(DynamicSubset):
    """Train on the samples of largest last loss in a random pool.

    Their number is that of the ratio, rounded, or of `always` if these are more.

    All weights are 1: the gradient is that of an order statistic of the losses. Samples that have
    not been seen come before all others, and are drawn at random among themselves.

    Args:
        dataset: any map-style dataset.
        ratio: share left out, in [0, 1), in every epoch.
        pool: share of the samples in the pool, at least 1 − ratio; None: as many as make the kept
            60 % of the pool, as published, or all samples.
        options: of [`DynamicSubset`][snello.curation.DynamicSubset]: seed, always, smoothing.

    Raises:
        ConfigError: for a ratio or pool out of range.

    Source: OrderDP, ICLR 2026, https://arxiv.org/abs/2606.08574 (ratio=0.7, pool=0.5).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        ratio: float = 0.7,
        *,
        pool: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        self.ratio = checked(ratio)
        self.pool = min(1.0, (1 - ratio) / POOL) if pool is None else pool
        check_option(
            1 - ratio - 1e-9 <= self.pool <= 1,
            f"pool={pool} must lie between the share kept, {1 - ratio:g}, and 1",
        )

    def _choose(self, places: Tensor, epoch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        forced = self._forced[places]
        # The pool's order is random, so that equal losses are decided at random.
        order = torch.randperm(len(places), generator=random)
        order = torch.cat([order[forced[order]], order[~forced[order]]])
        count = budget(self.ratio, len(places))
        pool = order[: max(count, round(self.pool * len(places)))]
        rank = -self._scores.values[places[pool]].nan_to_num(nan=torch.inf)
        rank[forced[pool]] = -torch.inf
        kept = torch.zeros(len(places), dtype=torch.bool)
        kept[pool[lowest(rank, count)]] = True
        return kept, self._ones

"""InfoBatch: leave out samples of small loss, and weigh up those of them that stay."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snello.errors import check_option

from ._dynamic import DynamicSubset
from ._random import budget, checked

Rescaling = Literal["share", "cumulative"]


class InfoBatch(DynamicSubset):
    r"""Leave out a share of the samples whose last loss is below the mean; weigh the others up.

    Of $n$ samples below the mean, $k$ are drawn at random and have the weight
    $n / k$, about $1 / (1 - r)$; all other samples have the weight 1. The gradient of
    the weighted losses, summed over the epoch, is that of all losses in expectation. Since only
    samples below the mean are left out, fewer than the ratio are: with 0.5, a fourth to two fifths
    in most trainings, and up to half where few samples have very large losses.
    The first epoch, in which no loss is known, leaves out none.

    Args:
        dataset: any map-style dataset.
        ratio: share $r$ left out of the samples below the mean, in [0, 1).
        epochs: of the whole training; None: never anneal.
        anneal: share of the epochs after which nothing is left out any more and all weights are 1,
            which removes the remaining bias at the end of the training.
        window: compare a loss with the mean of so many batches, at the time when it was computed;
            None: with the mean of all last losses, some of which are old (RePB).
        rescaling: `"share"`, or `"cumulative"`: every sample kept has the weight E/n, with E the
            number of epochs so far and n how many of them had the sample (RePB).
        options: of [`DynamicSubset`][snello.curation.DynamicSubset]: seed, always, smoothing.

    Raises:
        ConfigError: for options out of range.

    Sources: Qin et al., "InfoBatch: Lossless training speed up by unbiased dynamic data pruning",
    ICLR 2024, https://arxiv.org/abs/2303.04947 (defaults ratio=0.5, anneal=0.875). There the kept
    have the weight 1/(1 − r) even where k is rounded. RePB, ICLR 2026: `window`,
    `rescaling="cumulative"`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        ratio: float = 0.5,
        *,
        epochs: int | None = None,
        anneal: float = 0.875,
        window: int | None = None,
        rescaling: Rescaling = "share",
        **options: Any,
    ) -> None:
        check_option(
            epochs is None or epochs >= 1, f"epochs must be at least 1, or None, not {epochs}"
        )
        check_option(0 <= anneal <= 1, f"anneal is a share of the epochs, in [0, 1], not {anneal}")
        check_option(
            window is None or window >= 1,
            f"window is a number of batches, at least 1, not {window}",
        )
        check_option(
            rescaling in get_args(Rescaling),
            f"there is no rescaling={rescaling!r}; it is one of: {', '.join(get_args(Rescaling))}",
        )
        self._window = window
        super().__init__(dataset, **options)
        self.ratio, self.epochs = checked(ratio), epochs
        self.anneal, self.rescaling = anneal, rescaling

    def _choose(self, places: Tensor, epoch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        kept, weights = torch.ones(len(places), dtype=torch.bool), self._ones
        if self.epochs is not None and epoch >= self.anneal * self.epochs:
            return kept, weights
        easy = (self._below(places) & ~self._forced[places]).nonzero().flatten()
        if len(easy):
            count = budget(self.ratio, len(easy))
            drawn = easy[torch.randperm(len(easy), generator=random)[:count]]
            kept[easy], kept[drawn] = False, True
            weights[places[drawn]] = len(easy) / count
        if self.rescaling == "cumulative":
            return kept, (self._rounds + 1) / (self._uses + 1).double()
        return kept, weights

    def _below(self, places: Tensor) -> Tensor:
        """Samples offered whose loss is below the mean, bool `(M,)`; those not seen are not."""
        if self._window is not None:
            return self._scores.easy[places]
        scores = self._scores.values[places]
        return scores < scores.nanmean()

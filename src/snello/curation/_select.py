"""Selections: from scores to the samples that are kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from snello.errors import DataError, check_option

from ._kept import Kept, digest
from ._random import budget, checked, lowest
from ._recorder import Recording
from ._seeds import generator
from ._static import aum, dual


def keep_highest(
    scores: Tensor,
    ratio: float,
    method: str = "highest",
    *,
    seed: int = 0,
    labels: Tensor | None = None,
    **facts: Any,
) -> Kept:
    """Keep the samples of highest score; equal scores are decided at random.

    Args:
        scores: `(N,)`.
        ratio: share left out, in [0, 1).
        method: name for the file.
        seed: decides between equal scores. In the order of the dataset, whole classes of it would
            be left out where it is sorted: most counts of [`forgetting`][snello.curation.forgetting]
            are equal.
        labels: of all samples, `(N,)`, by which the file is told from that of another dataset.
        facts: of [`Kept`][snello.curation.Kept]: seconds, presentations.

    Raises:
        ConfigError: for a ratio out of range, or scores of another shape.
        DataError: for scores that are not finite.
    """
    scores = _finite(scores)
    order = torch.randperm(len(scores), generator=generator(seed, "ties"))
    kept = order[lowest(-scores[order].double(), budget(checked(ratio), len(scores)))]
    of = "" if labels is None else digest(labels)
    return Kept(kept.sort().values, len(scores), method, ratio, seed=seed, labels=of, **facts)


def keep_random(labels: Tensor, ratio: float, *, seed: int = 0) -> Kept:
    """Keep a random share of every class: the baseline of static pruning.

    Args:
        labels: int64 `(N,)`.
        ratio: share left out, in [0, 1). Class sizes are rounded such that the total is exact.
        seed: decides the draw.

    Raises:
        ConfigError: for a ratio out of range, or labels of another shape.
    """
    check_option(labels.dim() == 1, f"labels must have the shape (N,), not {tuple(labels.shape)}")
    _, classes = torch.unique(labels, return_inverse=True)
    sizes = torch.bincount(classes).tolist()
    parts = _rounded(sizes, budget(checked(ratio), len(labels)))
    rank = torch.rand(len(labels), generator=generator(seed, "stratified"), dtype=torch.float64)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for number, count in enumerate(parts):
        places = (classes == number).nonzero().flatten()
        kept[places[lowest(rank[places], count)]] = True
    return Kept(_places(kept), len(labels), "random", ratio, seed=seed, labels=digest(labels))


def keep_covering(
    recording: Recording, ratio: float, *, hard: float = 0.0, strata: int = 50, seed: int = 0
) -> Kept:
    """Keep as many samples of every degree of difficulty (CCS).

    The hardest share is left out whole; the rest of the range of the AUM is cut into strata of
    equal width, and the budget is dealt out evenly, from the smallest stratum upward: what a small
    one cannot fill goes to the larger ones.

    Args:
        recording: of one training.
        ratio: share left out, in [0, 1).
        hard: share of the hardest samples, left out as likely mislabelled; at most the ratio. The
            paper tunes it for each ratio on the test set (0.3 at 90 % of CIFAR-10).
        strata: number of strata.
        seed: decides the draw inside a stratum.

    Raises:
        ConfigError: for options out of range.
        DataError: for samples that were not seen.

    Source: Zheng et al., "Coverage-centric coreset selection for high pruning rates", ICLR 2023,
    https://arxiv.org/abs/2210.15809
    """
    check_option(0 <= hard <= checked(ratio), f"hard={hard} must lie between 0 and ratio={ratio}")
    check_option(strata >= 1, f"strata must be at least 1, not {strata}")
    scores = _finite(aum(recording)).double()
    count = budget(ratio, len(scores))
    candidates = torch.argsort(scores, stable=True)[
        min(int(hard * len(scores)), len(scores) - count) :
    ]
    low, high = scores[candidates[0]], scores[candidates[-1]]
    width = (high - low).clamp(min=1e-300)
    stratum = ((scores[candidates] - low) / width * strata).long().clamp(max=strata - 1)
    random = generator(seed, "strata")
    shuffled = torch.randperm(len(candidates), generator=random)
    candidates, stratum = candidates[shuffled], stratum[shuffled]
    groups = [candidates[stratum == number] for number in torch.unique(stratum).tolist()]
    chosen = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        share = min(len(group), math.ceil(count / left))
        chosen.append(group[:share])
        count -= share
    places = torch.cat(chosen).sort().values
    return Kept(places, len(scores), "ccs", ratio, seed=seed, **_cost(recording))


def keep_dual(
    recording: Recording, ratio: float, *, window: int = 10, c: float = 4.0, seed: int = 0
) -> Kept:
    """Draw samples in proportion to their DUAL score, and to a beta density of their mean p_y.

    The density favours the hardest samples at a small ratio, and moves to easier ones as the ratio
    grows: its second parameter is 15 (1 − μ) (1 − r^c), its first 16 less that, with μ the mean
    p_y of the ten samples of highest score.

    Args:
        recording: of a short training, all samples in every epoch.
        ratio: share r left out, in [0, 1).
        window: of [`dual`][snello.curation.dual].
        c: exponent; the smaller, the sooner easy samples are kept.
        seed: decides the draw.

    Raises:
        ConfigError: for options out of range.
        DataError: if a sample was not seen in every epoch.

    Source: as for [`dual`][snello.curation.dual] (c=4 on CIFAR-100).
    """
    check_option(c > 0, f"c must be positive, not {c}")
    scores, mean = dual(recording, window).double(), recording.probability.mean(0).double()
    count = budget(checked(ratio), len(scores))
    mu = float(mean[torch.topk(scores, min(10, len(scores))).indices].mean())
    beta = 15 * (1 - mu) * (1 - ratio**c)
    alpha = 16 - beta
    mean = mean.clamp(1e-6, 1 - 1e-6)
    # The constant of the density does not change the proportions.
    density = (alpha - 1) * mean.log() + (beta - 1) * torch.log1p(-mean)
    weight = scores.clamp(min=1e-12).log() + density
    # Draws without replacement in these proportions (Efraimidis and Spirakis, 2006), as logarithms.
    random = torch.rand(len(scores), generator=generator(seed, "dual"), dtype=torch.float64)
    rank = (-random.clamp(min=1e-300).log()).clamp(min=1e-300).log() - weight
    return Kept(
        _places(lowest(rank, count)), len(scores), "dual", ratio, seed=seed, **_cost(recording)
    )


def _cost(recording: Recording) -> dict[str, Any]:
    return {
        "seconds": recording.seconds,
        "presentations": recording.presentations,
        "labels": digest(recording.labels),
    }


def _places(kept: Tensor) -> Tensor:
    return kept.nonzero().flatten()


def _finite(scores: Tensor) -> Tensor:
    check_option(scores.dim() == 1, f"scores must have the shape (N,), not {tuple(scores.shape)}")
    missing = int((~scores.isfinite()).sum())
    if missing:
        raise DataError(
            f"{missing} of {len(scores)} samples have no score: let every sample be seen while recording"
        )
    return scores


def _rounded(sizes: list[int], total: int) -> list[int]:
    """Shares of a total in proportion to sizes; the largest remainders are rounded up."""
    exact = [size * total / sum(sizes) for size in sizes]
    parts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda k: (parts[k] - exact[k], k))
    for k in by_remainder[: total - sum(parts)]:
        parts[k] += 1
    return parts

"""Normalisation of scores across layers, so that one threshold can be applied to all layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from snello.errors import ConfigError

Normalise = Literal["mean", "max", "standard", "rank"]
"""Ways to normalise the scores of each layer; see [`comparable`][snello.pruning.comparable]."""

MAGNITUDES: Normalise = "mean"
"""Value of "auto" for importances without an attribute `normalise`. Taylor scores have one, None:
they are all changes of the loss. Chosen by measurement: docs/lab-notes.md, 2026-11-28."""


def normalise_of(given: str | None, importance: object) -> Normalise | None:
    """Resolve the name of a normalisation; "auto" is the one that fits the importance.

    Raises:
        ConfigError: for an unknown name, with those that exist.
    """
    if given == "auto":
        given = getattr(importance, "normalise", MAGNITUDES)
    known = get_args(Normalise)
    if given is not None and given not in known:
        raise ConfigError(f"normalise is None, auto or one of {', '.join(known)}, not {given!r}")
    return given  # type: ignore[return-value]


def comparable(scores: dict[str, Tensor], how: Normalise | None) -> dict[str, Tensor]:
    """Normalise the scores of each layer (or other set of units), keeping the order within it.

    The statistics are those of the units that are not pruned yet, except for "rank".

    Args:
        scores: layer name -> score of each unit: zero if it is pruned already, else positive.
        how: "mean" and "max" divide by the mean and the largest score of the layer; "standard"
            subtracts the mean and divides by the standard deviation; "rank" is the rank divided by
            the number of the layer's units, so that one threshold prunes the same share of every
            layer; None changes nothing.

    Returns:
        The same names and shapes; zero where it was zero, else positive.
    """
    if how is None:
        return scores
    scaled = {name: _SCALES[how](score) for name, score in scores.items()}
    if how == "standard":
        scaled = _raised(scores, scaled)
    tiny = {name: torch.finfo(value.dtype).tiny for name, value in scaled.items()}
    return {
        name: value.clamp_min(tiny[name]).masked_fill(scores[name] == 0, 0)
        for name, value in scaled.items()
    }


def _over_mean(score: Tensor) -> Tensor:
    live = score[score > 0]
    return score / live.mean() if len(live) else score


def _over_max(score: Tensor) -> Tensor:
    return score / score.max() if bool((score > 0).any()) else score


def _standardised(score: Tensor) -> Tensor:
    live = score[score > 0]
    if len(live) < 2:
        return torch.zeros_like(score)
    return (score - live.mean()) / live.std().clamp_min(torch.finfo(score.dtype).tiny)


def _raised(scores: dict[str, Tensor], scaled: dict[str, Tensor]) -> dict[str, Tensor]:
    """Standardised scores shifted by one number, so that the lowest of all layers is positive."""
    lows = [float(value[scores[name] > 0].min()) for name, value in scaled.items()
            if bool((scores[name] > 0).any())]  # fmt: skip
    low = min(lows, default=0.0)
    return {name: value - low + 1e-6 for name, value in scaled.items()}


def _ranks(score: Tensor) -> Tensor:
    """Rank of each value divided by their number, in (0, 1]; ties are ranked by position."""
    flat = score.flatten()
    ranks = torch.empty(len(flat), dtype=torch.float64, device="cpu")
    ranks[flat.cpu().argsort(stable=True)] = torch.arange(
        1, len(flat) + 1, dtype=torch.float64
    ) / len(flat)
    # In float64, because float32 has 24 bits: too few for the ranks of over 16 million weights.
    return ranks.reshape(score.shape).to(score.device)


_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _over_mean, "max": _over_max, "standard": _standardised, "rank": _ranks,
}  # fmt: skip

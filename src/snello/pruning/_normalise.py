"""Scores that are comparable across layers, so that one threshold ranks the units of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from snello.errors import ConfigError

Normalise = Literal["mean", "max", "standard", "rank"]
"""Ways to bring the scores of one layer to the scale of the others; see :func:`comparable`."""

MAGNITUDES: Normalise = "mean"
"""Meaning of "auto", unless the importance has an attribute ``normalise`` that says otherwise, as
Taylor scores do: they have one unit, the loss. Chosen by measurement: docs/lab-notes.md, 2026-11-28."""


def normalise_of(given: str | None, importance: object) -> Normalise | None:
    """The name of a normalisation, or None; "auto" is what fits the importance.

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
    """Scores on a scale that all layers (or other sets of units) share; the order within one stays.

    The statistics are those of the units that are not pruned yet, except for "rank".

    Args:
        scores: layer name -> score of each unit: zero where it is pruned already, else positive.
        how: "mean" and "max" divide by the mean and the largest score of the layer; "standard"
            subtracts the mean and divides by the standard deviation; "rank" takes the rank as a
            share of the layer's units, so that one threshold takes the same share of every layer;
            None changes nothing.

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
    """Standardised scores shifted by one number, so that the lowest of all is just above zero."""
    lows = [float(value[scores[name] > 0].min()) for name, value in scaled.items()
            if bool((scores[name] > 0).any())]  # fmt: skip
    low = min(lows, default=0.0)
    return {name: value - low + 1e-6 for name, value in scaled.items()}


def _ranks(score: Tensor) -> Tensor:
    """Rank of each value as a share of their number, in (0, 1]; ties in order of their place."""
    flat = score.flatten()
    ranks = torch.empty(len(flat), dtype=torch.float64, device="cpu")
    ranks[flat.cpu().argsort(stable=True)] = torch.arange(
        1, len(flat) + 1, dtype=torch.float64
    ) / len(flat)
    # Single precision holds 24 bits: enough for the ranks of 16 million weights, not of more.
    return ranks.reshape(score.shape).to(score.device)


_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _over_mean, "max": _over_max, "standard": _standardised, "rank": _ranks,
}  # fmt: skip

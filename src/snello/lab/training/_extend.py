"""Extension of a run to more epochs than it was planned for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from snello.lab.methods import method_of

from ._config import Recipe


def refusal(there: Mapping[str, Any], recipe: Recipe, method: str, done: int) -> str | None:
    """The reason why a run cannot continue to another number of epochs; None if it can.

    An extended run must end with the same weights as a run of that length from the start;
    otherwise it is refused.

    Args:
        there: settings of the existing run, from the note in its folder.
        recipe: settings of the new request; they differ only in epochs and fine-tuning.
        method: name of the method.
        done: number of finished epochs.
    """
    used = method_of(method)
    pruning = used.block
    before, after = int(there["epochs"]), recipe.epochs
    ends = (_end(there, pruning), after - (recipe.pruning(used).finetune if pruning else 0))
    if done == 0 or (before == after and ends[0] == ends[1]):
        return None
    if after < done:
        return (
            f"it cannot be made shorter than that: choose --epochs={done} or more, or another --out"
        )
    if before != after and recipe.optimizer.schedule in ("poly", "cosine"):
        return (
            f"the schedule {recipe.optimizer.schedule!r} reaches a learning rate of zero at the "
            f"last epoch, so that --epochs={after} would have trained the finished epochs with "
            f"other learning rates: resume with --epochs={before}, or start from its weights in "
            "another --out with --weights"
        )
    if before != after and (full := _annealed(there, recipe)) is not None and done > full:
        return (
            f"its curation was to end with epoch {full}, which is behind it: resume with --epochs={before}, or start "
            "another --out from its weights with --weights"
        )
    if pruning and ends[0] != ends[1] and done >= min(ends):
        kept = f"--{pruning}.finetune={after - ends[0]}"
        return (
            f"its pruning was to end with epoch {ends[0]}, now with epoch {ends[1]}, and epoch "
            f"{min(ends)} is already finished: add {kept} to fine-tune during the additional "
            "epochs, or choose another --out"
        )
    return None


def _annealed(there: Mapping[str, Any], recipe: Recipe) -> int | None:
    """The first epoch in which either length of a run trains on all images; None without any."""
    if recipe.curation.method != "infobatch" or recipe.curation.anneal >= 1:
        return None
    return math.ceil(recipe.curation.anneal * min(int(there["epochs"]), recipe.epochs))


def _end(there: Mapping[str, Any], pruning: str | None) -> int:
    """The last epoch with pruning; only fine-tuning follows."""
    return int(there["epochs"]) - (int(there[pruning]["finetune"]) if pruning else 0)

"""Extension of a run to more epochs than it was planned for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from snello.lab.methods import method_of

from ._config import Recipe


def refusal(there: Mapping[str, Any], recipe: Recipe, method: str, done: int) -> str | None:
    """The reason why a run cannot go on to another number of epochs; None if it can.

    A run that goes on has the weights of one that was asked for so many epochs from the start, or
    it is refused.

    Args:
        there: what the run was asked for, as its folder notes it.
        recipe: what is asked for now; it differs from that in its epochs and its fine-tuning alone.
        method: name of the method.
        done: epochs that are finished.
    """
    used = method_of(method)
    pruning = used.block
    before, after = int(there["epochs"]), recipe.epochs
    ends = (_end(there, pruning), after - (recipe.pruning(used).finetune if pruning else 0))
    if done == 0 or (before == after and ends[0] == ends[1]):
        return None
    if after < done:
        return f"it cannot be made shorter than that: ask for --epochs={done} or more, or choose another --out"
    if before != after and recipe.optimizer.schedule in ("poly", "cosine"):
        return (
            f"with the schedule {recipe.optimizer.schedule!r} the learning rate reaches zero at the last epoch, so "
            f"that with --epochs={after} these epochs would have had another one: resume with --epochs={before}, or "
            "start another --out from its weights with --weights"
        )
    if before != after and (full := _annealed(there, recipe)) is not None and done > full:
        return (
            f"its curation was to end with epoch {full}, which is behind it: resume with --epochs={before}, or start "
            "another --out from its weights with --weights"
        )
    if pruning and ends[0] != ends[1] and done >= min(ends):
        kept = f"--{pruning}.finetune={after - ends[0]}"
        return (
            f"its pruning was to end with epoch {ends[0]}, now with epoch {ends[1]}, and epoch {min(ends)} is "
            f"behind it: add {kept} to fine-tune for the epochs that are added, or choose another --out"
        )
    return None


def _annealed(there: Mapping[str, Any], recipe: Recipe) -> int | None:
    """The first epoch in which either length of a run trains on all images; None without any."""
    if recipe.curation.method != "infobatch" or recipe.curation.anneal >= 1:
        return None
    return math.ceil(recipe.curation.anneal * min(int(there["epochs"]), recipe.epochs))


def _end(there: Mapping[str, Any], pruning: str | None) -> int:
    """The epoch after which a run is fine-tuned only."""
    return int(there["epochs"]) - (int(there[pruning]["finetune"]) if pruning else 0)

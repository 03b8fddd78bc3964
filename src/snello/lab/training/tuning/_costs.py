"""Costs of a training, from the records of its epochs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from snello.lab.methods import method_of
from snello.lab.training._history import EpochRecord


def _parameters(epochs: Sequence[EpochRecord]) -> float:
    return 1 - epochs[-1].pruned


def _backward(epochs: Sequence[EpochRecord]) -> float:
    # Without NEq nothing is counted in the paper's convention, and nothing is left out.
    return statistics.mean(
        e.paper_flops / e.paper_dense_flops if e.paper_dense_flops else 1.0 for e in epochs
    )


def _error(epochs: Sequence[EpochRecord]) -> float:
    return 1 - epochs[-1].val_accuracy


COSTS: Mapping[str, Callable[[Sequence[EpochRecord]], float]] = {
    "parameters": _parameters, "backward": _backward, "error": _error,
}  # fmt: skip
"""Name -> function from the epochs so far to a cost in [0, 1].

"parameters" is the share of the parameters that are not zero; "backward" the share of the backward
FLOPs that are executed, mean over the epochs; "error" is one minus the accuracy, without a bound.
"""


def cost_for(method: str) -> str:
    """The cost that a method lowers: the name of one of `COSTS`."""
    used = method_of(method)
    if used.sensitivity is not None:
        return "parameters"
    return "error" if used.selection is None else "backward"

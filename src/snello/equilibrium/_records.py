"""The record of one step of a selective update."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EquilibriumStep:
    """The decision of one call of `step()`, which holds until the next call.

    Attributes:
        step: number of calls of `step()` so far; epochs, if it is called once an epoch.
        updated: layer name -> share of its neurons that are updated, in [0, 1].
        total: the same over all watched neurons.
        flops: backward FLOPs per sample until the next step in the paper's convention (weight
            gradients only; see `step_flops` for the FLOPs executed).
        dense_flops: the same with nothing frozen.
        note: why nothing is frozen although the selection named neurons, with `only_if_faster`.
    """

    step: int
    updated: dict[str, float]
    total: float
    flops: float
    dense_flops: float
    note: str = ""

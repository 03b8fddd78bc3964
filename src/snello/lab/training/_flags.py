"""Warnings for report rows whose accuracy shows that pruning damaged the network."""

from __future__ import annotations

from snello.pruning import at_chance

AT_CHANCE, BEYOND = "at chance", "beyond max_drop"


def flag_of(
    accuracy: float,
    classes: int | None,
    samples: int,
    *,
    dense: float | None = None,
    pruned: float | None = None,
    max_drop: float | None = None,
) -> str:
    """The warning of a row; empty if its accuracy is unsuspicious.

    Args:
        accuracy: share of correctly classified test images, in [0, 1].
        classes: number of classes; None if the metric is not an accuracy.
        samples: number of test images.
        dense: validation accuracy before the first pruning step.
        pruned: validation accuracy of the last epoch.
        max_drop: bound on the drop from `dense` to `pruned`.
    """
    if classes is not None and at_chance(accuracy, 1 / classes, samples):
        return AT_CHANCE
    if max_drop is None or dense is None or pruned is None:
        return ""
    return "" if dense - pruned <= max_drop + 1e-9 else BEYOND

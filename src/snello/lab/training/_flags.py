"""Marks for rows of a report whose accuracy says that pruning went wrong."""

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
    """The mark of a row, empty where there is nothing to say.

    Args:
        accuracy: share of the test images that are classified rightly.
        classes: number of classes; None where the metric is no accuracy.
        samples: number of test images.
        dense: validation accuracy before the first pruning step.
        pruned: validation accuracy of the last epoch.
        max_drop: the bound on the fall from ``dense`` to ``pruned``.
    """
    if classes is not None and at_chance(accuracy, 1 / classes, samples):
        return AT_CHANCE
    if max_drop is None or dense is None or pruned is None:
        return ""
    return "" if dense - pruned <= max_drop + 1e-9 else BEYOND

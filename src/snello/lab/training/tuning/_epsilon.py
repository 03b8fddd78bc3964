"""NEq's epsilon for a wished share of updated neurons, by bisection."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snello.errors import ConfigError, check_option
from snello.files import write_text
from snello.lab.methods import method_of
from snello.lab.recipes import Recipe, recipe_text
from snello.lab.training._fit import validate
from snello.search.tune import Bisection, bisect

from ._shared import WINNER, check_one_process, trained
from ._space import range_of

TOLERANCE = 0.02
"""Largest difference between the wished and the measured share."""
_WIDE = {"neq.eps": [1e-8, 1.0, "log"]}


@dataclass(frozen=True)
class Epsilon:
    """NEq's epsilon for a wished share.

    Attributes:
        method: name of the training method.
        wished: share of the neurons to update, mean over the epochs.
        found: the trainings, as (epsilon, share updated), and the nearest.
        accuracies: validation accuracy of each training.
        recipe: file with the recipe that has this epsilon.
    """

    method: str
    wished: float
    found: Bisection
    accuracies: tuple[float, ...]
    recipe: str


def epsilon(
    recipe: Recipe,
    folder: str | Path,
    updated: float,
    *,
    method: str = "neq",
    declared: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
    steps: int = 8,
    progress: Callable[[str], object] | None = None,
) -> Epsilon:
    """Find the epsilon with which NEq updates a wished share of the neurons.

    A larger epsilon counts more neurons as being at equilibrium, so that the share falls with it and
    bisection needs few trainings where a search needs many. Finished trainings in the folder are
    not repeated.

    Args:
        recipe: of the trainings.
        folder: for them and for `winner.yaml`.
        updated: wished share of the neurons, mean over all epochs, in (0, 1).
        method: "neq", alone or joined to a sensitivity.
        declared: ranges by dotted name, of which `neq.eps` is used; None: 1e-8 to 1.
        tolerance: largest difference from the wished share at which the bisection ends.
        steps: largest number of trainings.
        progress: called with a line of text after each training.

    Raises:
        ConfigError: for a share out of range, or a method without NEq.
        SnelloError: for errors of the data, the model and the training.
    """
    check_one_process("epsilon")
    selection = method_of(method).selection
    if selection is None or selection.name != "neq":
        raise ConfigError(
            f"--updated needs a method with NEq, such as --method=neq, not {method!r}"
        )
    check_option(0 < updated < 1, f"--updated is a share in (0, 1), not {updated}")
    space = range_of(recipe, method, "neq.eps", {**_WIDE, **(declared or {})})
    splits = validate(replace(recipe, methods=(method,)))
    say = progress or (lambda line: None)
    accuracies: list[float] = []

    def with_epsilon(eps: float) -> Recipe:
        return replace(recipe, neq=replace(recipe.neq, eps=eps), methods=(method,))

    def measure(eps: float) -> float:
        place = Path(folder) / "epsilon" / f"{eps:.6g}"
        result = trained(with_epsilon(eps), method, place, splits)
        share = statistics.mean(epoch.updated for epoch in result.epochs)
        accuracies.append(result.epochs[-1].val_accuracy)
        say(f"eps {eps:.4g}: {share:.1%} updated, validation accuracy {accuracies[-1]:.4f}")
        return share

    found = bisect(
        measure, updated, space.low, space.high, tolerance=tolerance, log=True, steps=steps
    )
    title = f"{recipe.model.label} on {recipe.data.name}, {method}: eps for {updated:.0%} updated"
    text = recipe_text(with_epsilon(found.setting), [title])
    path = write_text(Path(folder) / WINNER, text)
    return Epsilon(method, updated, found, tuple(accuracies), str(path))

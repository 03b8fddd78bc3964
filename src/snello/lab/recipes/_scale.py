"""Values of a recipe that depend on its number of epochs, for another number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from ._config import SENSITIVITY_BLOCKS, Recipe

LENGTHS = (
    "optimizer.milestones",
    "optimizer.step_size",
    "optimizer.warmup_epochs",
    *(f"{block}.{name}" for block in SENSITIVITY_BLOCKS for name in ("pwe", "finetune")),
)
"""Fields that are numbers of epochs, or epochs."""


def scaled(recipe: Recipe, epochs: int) -> dict[str, Any]:
    """Values of `LENGTHS` that change when a recipe runs for another number of epochs.

    Each keeps its share of the run, rounded; what happened still happens, and no fine-tuning, warm-up
    or milestone is as long as the run or beyond it. Milestones that fall together are one.

    >>> from ._recipe import load_recipe
    >>> scaled(load_recipe("digits"), 20)["optimizer.milestones"]
    [15]

    Args:
        recipe: as it is written.
        epochs: at least 1.
    """
    share = Fraction(epochs, recipe.epochs)
    found = {}
    unused = {"optimizer.step_size"} if recipe.optimizer.schedule != "step" else set()
    for name in (name for name in LENGTHS if name not in unused):
        value = value_of(recipe, name)
        new: Any
        if name == "optimizer.milestones":
            places = (_rounded(place * share) for place in value)
            new = sorted({place for place in places if place < epochs})
            value = list(value)
        else:
            new = _rounded(value * share) if value else value
            if name.endswith((".finetune", ".warmup_epochs")):
                new = min(new, epochs - 1)
        if new != value:
            found[name] = new
    return found


def noted(note: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `LENGTHS` that the note of a run holds."""
    pairs = ((name, name.partition(".")) for name in LENGTHS)
    return {name: note[a][b] for name, (a, _, b) in pairs if b in note.get(a, {})}


def given_epochs(overrides: Sequence[str]) -> int | None:
    """Number of epochs among overrides; None where there is none, or no number."""
    values = [text.partition("=")[2] for text in overrides if text.startswith("--epochs=")]
    return int(values[-1]) if values and values[-1].isdecimal() and int(values[-1]) else None


def not_given(values: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Those of the values that no override sets, by itself or with its block."""
    given = {text.partition("=")[0].removeprefix("--") for text in overrides}
    for name, value in values.items():
        if not {name, name.partition(".")[0]} & given:
            yield name, value


def value_of(recipe: Recipe, name: str) -> Any:
    """Value of an option by its dotted name; None for an argument of the model that is not given."""
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    return value


def _rounded(length: Fraction) -> int:
    return max(1, round(length))

"""A pruning step before it is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from snello.neurons import Masks

from ._importance import Granularity
from ._limits import HEAVY
from ._threshold import ThresholdSearch


@dataclass(frozen=True)
class LayerShare:
    """The share that a step takes from one layer.

    Attributes:
        name: the layer.
        units: number of its units (weights, neurons or channels).
        before: number of units that are pruned already.
        after: number of units that will be pruned after the step.
        least: number of units that must be kept; see [`LayerLimits`][snello.pruning.LayerLimits].
    """

    name: str
    units: int
    before: int
    after: int
    least: int = 1


@dataclass(frozen=True)
class PruningPlan:
    """The effect of a pruning step before it is taken. Printed, it is a table.

    Attributes:
        granularity: kind of the units.
        search: the threshold, with the loss and cost that were measured at it.
        layers: one row per layer that may be pruned.
        masks: masks after the step.
    """

    granularity: Granularity
    search: ThresholdSearch
    layers: tuple[LayerShare, ...]
    masks: Masks = field(repr=False, compare=False)

    @property
    def before(self) -> int:
        """Units that are pruned already, over all layers."""
        return sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """Units that will be pruned, over all layers."""
        return sum(layer.after for layer in self.layers)

    @property
    def units(self) -> int:
        """Units that may be pruned, over all layers."""
        return sum(layer.units for layer in self.layers)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the step.

        One is for layers that lose nearly all units in this step (over 90 % of the neurons or
        channels, over 99 % of the weights), one for the case that no layer may lose more.
        """
        share = HEAVY[self.granularity]
        heavy = [row for row in self.layers if row.before < row.after > share * row.units + 1e-6]
        found = []
        if heavy:
            worst = max(heavy, key=lambda row: row.after / row.units)
            found.append(
                f"{len(heavy)} of {len(self.layers)} layers would lose more than {share:.0%} of their "
                f"{self.granularity}s, {worst.name!r} {worst.after} of {worst.units}: raise "
                "keep_at_least, set max_ratio for them, or prune less"
            )
        if self.layers and all(row.after >= row.units - row.least for row in self.layers):
            found.append(
                "every layer is at its minimum, nothing more can be pruned: lower keep_at_least "
                "or raise max_ratio"
            )
        return tuple(found)

    def __str__(self) -> str:
        width = max([5, *(len(layer.name) for layer in self.layers)])
        total = LayerShare("all", self.units, self.before, self.after)
        lines = [f"{'layer':{width}}  {self.granularity + 's':>9}  {'pruned':>9}  {'will be':>9}"]
        for row in (*self.layers, total):
            share = row.after / row.units if row.units else 0.0
            lines.append(
                f"{row.name:{width}}  {row.units:9}  {row.before:9}  {row.after:9}  {share:7.2%}"
            )
        search = self.search
        facts = [f"threshold {search.threshold:.4g}"]
        if math.isfinite(search.loss):
            bound = f" (bound {search.bound:.4f})" if math.isfinite(search.bound) else ""
            facts.append(f"loss {search.loss:.4f}{bound}")
        if search.cost is not None:
            facts.append(f"cost {search.cost:g}")
        summary = f"{', '.join(facts)}; {search.trials} trial(s)"
        warned = [f"warning: {text}" for text in self.warnings]
        return "\n".join([*lines, *warned, summary])


@dataclass(frozen=True)
class PrunerStep:
    """Result of one call of [`Pruner.step`][snello.pruning.Pruner.step].

    Attributes:
        loss: the validation loss that was measured; NaN without `evaluate`.
        improved: whether it is the best of this stage by the tolerance.
        search: the search for the threshold if a pruning step was due, else None. Its `note` is
            the reason if a [`QualityBound`][snello.pruning.QualityBound] prevented the step.
        pruned: share of all the model's parameters that are exactly zero now.
    """

    loss: float
    improved: bool
    search: ThresholdSearch | None
    pruned: float

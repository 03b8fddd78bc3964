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
        units: how many weights or neurons it has.
        before: how many of them are pruned already.
        after: how many will be.
        least: how many must stay, by :class:`LayerLimits`.
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
        granularity: what the units are.
        search: the threshold, and the loss and cost that were measured at it.
        layers: one row per layer that may be pruned.
        masks: what will be kept.
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
        """One sentence for all layers that lose nearly everything in this step (over 90 % of the
        neurons, over 99 % of the weights), and one where no layer may lose more.
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
    """Result of one call of :meth:`Pruner.step`.

    Attributes:
        loss: the validation loss that was measured; NaN without ``evaluate``.
        improved: whether it is the best of this stage by the tolerance.
        search: how the threshold was found, if a pruning step was due; None otherwise. Its
            ``note`` says why nothing was pruned, where the quality forbade it.
        pruned: share of all the model's parameters that are exactly zero now.
    """

    loss: float
    improved: bool
    search: ThresholdSearch | None
    pruned: float

"""Choice of what to remove by measurement: the step that changes the outputs least per saving."""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from snello.errors import ConfigError
from snello.graph import Example, Inputs
from snello.graph.coupled import Coupling, coupling, cut
from snello.processes import device_of_group, mean_over_processes
from snello.pruning import LayerLimits
from snello.pruning.channels import (
    ChannelImportance,
    ChannelPlan,
    Keep,
    Size,
    SizeModel,
    checked_scores,
    least_width,
)
from snello.search.output_distance import OutputDistance

from ._branches import Branch, find_branches, without

SAMPLES = 512
"""Calibration inputs that every candidate is run on, twice: statistics and outputs."""
PARTS = 8
"""Number of parts in which a dimension without rounding is removed."""


@dataclass(frozen=True)
class Removal:
    """Channels and branches to remove from a network.

    Attributes:
        plan: channels.
        branches: whole residual branches.
    """

    plan: ChannelPlan
    branches: tuple[Branch, ...] = ()

    def zeroed_branches(self, model: nn.Module) -> nn.Module:
        """A copy of a network in which the branches contribute nothing."""
        return without(model, _zeroed(self.branches))


def choose_measured(
    model: nn.Module,
    example: Example,
    keep: Keep,
    calibration: Sequence[Example],
    *,
    importance: str | ChannelImportance,
    limits: LayerLimits | None,
    round_to: int,
    exclude: Collection[str],
    widths: Mapping[str, int],
    groups: Coupling | None,
    branches: bool,
) -> Removal:
    """Remove part after part until the bounds hold, each time the one with the lowest price.

    A part is `round_to` channels of one dimension, those with the lowest scores, or a whole
    residual branch. Its price is the increase of the outputs' distance from those of `model`,
    divided by what it brings the sizes nearer to the bounds. BatchNorm statistics are estimated
    again before each measurement. Prices are measured again lazily: the part that was cheapest is
    measured in the present network, and taken if it is still the cheapest (Minoux, "Accelerated
    greedy algorithms for maximizing submodular set functions", 1978).

    Args:
        model: the network; it is not changed.
        example: its example inputs.
        keep: bounds on the size.
        calibration: inputs that the distance is measured on.
        importance, limits, round_to, exclude, widths, groups: as in
            [`plan_channels`][snello.pruning.channels.plan_channels].
        branches: whether branches may be removed, too.

    Raises:
        ConfigError: as `plan_channels`.
        ModelError: if the model does not run on the example inputs.
    """
    found, own = groups or coupling(model, example), limits or LayerLimits()
    scores = checked_scores(model, found, importance, own, round_to, exclude)
    known = find_branches(model, found, example) if branches else ()
    known = tuple(b for b in known if not any(b.is_within(module) for module in exclude))
    if branches and not known:
        warnings.warn(
            f"{type(model).__name__} has no residual branch that can be removed: only channels are",
            stacklevel=3,
        )
    moves: list[_Narrower | _Without] = [_Without(branch) for branch in known]
    for name, score in scores.items():
        score = found[name].protected(score)
        least = max(least_width(own, name, score, widths), round_to)
        part = round_to if round_to > 1 else max(1, len(score) // PARTS)
        moves.append(_Narrower(name, tuple(score.argsort(stable=True).tolist()), part, least))
    sizes = _Sizes(model, found, example, keep, known, widths)
    search = _Search(model, found, sizes, OutputDistance(model, tuple(_first(calibration))))
    state = search.run(moves)
    plan = ChannelPlan(found, sizes.outside(state), sizes.dense, sizes(state))
    return Removal(plan, state.branches)


@dataclass(frozen=True)
class _State:
    removed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()


@dataclass(frozen=True)
class _Narrower:
    """Removal of the next channels of a dimension, down to the next multiple of `part`."""

    name: str
    order: tuple[int, ...]
    part: int
    least: int

    def after(self, state: _State) -> _State | None:
        """The next state; None if the dimension is as narrow as it may be."""
        width = len(self.order)
        kept = width - len(state.removed.get(self.name, ()))
        kept = (math.ceil(kept / self.part) - 1) * self.part
        if kept < self.least:
            return None
        gone = tuple(sorted(self.order[: width - kept]))
        return replace(state, removed={**state.removed, self.name: gone})


@dataclass(frozen=True)
class _Without:
    """Removal of a branch."""

    branch: Branch

    def after(self, state: _State) -> _State | None:
        """The next state; None if the branch is removed already."""
        if self.branch in state.branches:
            return None
        return replace(state, branches=(*state.branches, self.branch))


class _Sizes:
    """Sizes of a network without some channels and branches, and how far they are from a bound."""

    def __init__(
        self,
        model: nn.Module,
        groups: Coupling,
        example: Example,
        keep: Keep,
        branches: Sequence[Branch],
        widths: Mapping[str, int],
    ) -> None:
        self._model, self.keep, self._groups = SizeModel(model, groups, example), keep, groups
        self.dense = self._model({})
        self._inside = {
            branch.name: {d.name for d in groups.dimensions if branch.contains(d)}
            for branch in branches
        }
        self._present = sum(d.width for d in groups.free)
        # The share of channels is that of the network before any pruning.
        self._channels = sum(widths.values()) or self._present

    def __call__(self, state: _State) -> Size:
        gone = frozenset().union(*(branch.within for branch in state.branches))
        return self._model(state.removed, without=gone)

    def inside(self, state: _State) -> set[str]:
        """Dimensions that exist only within removed branches."""
        return set().union(*(self._inside[branch.name] for branch in state.branches))

    def outside(self, state: _State) -> dict[str, tuple[int, ...]]:
        """The removed channels that do not go with a branch."""
        inside = self.inside(state)
        return {name: gone for name, gone in state.removed.items() if name not in inside}

    def excess(self, state: _State) -> float:
        """Sum of what the bounded shares are above their bounds; 0 if all of them hold."""
        size, inside = self(state), self.inside(state)
        lost = sum(
            d.width if d.name in inside else len(state.removed.get(d.name, ()))
            for d in self._groups.free
        )
        shares = {
            "macs": size.macs / max(self.dense.macs, 1),
            "parameters": size.parameters / self.dense.parameters,
            "channels": (self._present - lost) / max(self._channels, 1),
        }
        over = [
            shares[name] - bound for name, bound in vars(self.keep).items() if bound is not None
        ]
        return math.fsum(excess for excess in over if excess > 1e-9)


class _Search:
    """Greedy choice with prices that are measured again when they may decide."""

    def __init__(
        self, model: nn.Module, groups: Coupling, sizes: _Sizes, distance: OutputDistance
    ) -> None:
        self._model, self._groups, self._sizes, self._distance = model, groups, sizes, distance

    def run(self, moves: Sequence[_Narrower | _Without]) -> _State:
        state = _State()
        distance, excess = self._distance_of(state), self._sizes.excess(state)
        unmeasured = -1
        # (price, number of the move, step in which the price was measured, distance)
        waiting = [(float("-inf"), i, unmeasured, 0.0) for i in range(len(moves))]
        step = 0
        while excess > 0:
            if not waiting:
                raise ConfigError(self._unreachable(state))
            price, number, measured_in, far = heapq.heappop(waiting)
            after = moves[number].after(state)
            if after is None:
                continue
            left = self._sizes.excess(after)
            if measured_in == step:
                state, distance, excess, step = after, far, left, step + 1
                heapq.heappush(waiting, (price, number, unmeasured, 0.0))  # its next part
            elif left < excess:  # else it saves nothing of what is bounded, now or later
                far = self._distance_of(after)
                price = (far - distance) / (excess - left)
                heapq.heappush(waiting, (price, number, step, far))
        return state

    def _distance_of(self, state: _State) -> float:
        network = without(self._model, _zeroed(state.branches))
        found = self._distance(cut(network, self._groups, self._sizes.outside(state)))
        return mean_over_processes(found, device_of_group())  # so that all of them choose alike

    def _unreachable(self, state: _State) -> str:
        size = self._sizes(state)
        return (
            f"{self._sizes.keep} cannot be reached: with everything removed that may be there stay "
            f"{size.macs / max(self._sizes.dense.macs, 1):.3f} of the MACs and "
            f"{size.parameters / self._sizes.dense.parameters:.3f} of the parameters; keep more, or "
            "lower round_to or keep_at_least (limits=LayerLimits(...), --keep-at-least)"
        )


def _zeroed(branches: Sequence[Branch]) -> list[str]:
    """Parameters that are zero without some branches."""
    return [name for branch in branches for name in branch.zeroed]


def _first(batches: Sequence[Example]) -> Iterator[Inputs]:
    """The first batches, with about as many inputs as are measured on."""
    count = 0
    for batch in batches:
        if count >= SAMPLES:
            return
        inputs = Inputs.of(batch)
        yield inputs
        count += inputs.samples

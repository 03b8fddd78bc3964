"""The front of points that a Lagrange multiplier gives: less and less cost for more distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ._costs import SPARSITY, Cost
from ._point import Group, Point

PRICES = 60
"""Number of multipliers, in a geometric sequence."""

SWEEPS = 6
"""Sweeps over the groups for one multiplier, at most."""


@dataclass(frozen=True)
class FrontPoint:
    """A point with its predictions.

    Attributes:
        point: widths and sparsity.
        distance: predicted distance of its outputs from the dense network's.
        cost: predicted cost.
    """

    point: Point
    distance: float
    cost: float


def front(groups: Sequence[Group], cost: Cost) -> list[FrontPoint]:
    """Points that minimise `distance + multiplier * cost`, from dense to narrow.

    The distance is the sum over the groups, as if they did not interact. The cost of neighbouring
    layers is a product of their widths, so that the groups are solved in turn, each with the others
    fixed, until none changes (coordinate descent), from the solution of the last multiplier.

    Args:
        groups: choices and their distances.
        cost: predicted cost.

    Returns:
        The distinct points in order of falling cost; the first is the dense network, also where
        narrower ones are as near. Any other that another one is as near as, for less, is left out.

    Source: Everett, "Generalized Lagrange multiplier method", Operations Research, 1963.
    """
    chosen = {group.name: 0 for group in groups}
    found = [_predicted(groups, chosen, cost)]
    for price in _prices(groups, chosen, cost):
        for _ in range(SWEEPS):
            before = dict(chosen)
            for group in groups:
                chosen[group.name] = _best(groups, group, chosen, cost, price)
            if chosen == before:
                break
        found.append(_predicted(groups, chosen, cost))
    return _undominated(found)


def point_of(groups: Sequence[Group], chosen: dict[str, int]) -> Point:
    """The point with these levels."""
    widths = {g.name: g.levels[chosen[g.name]] for g in groups if g.name != SPARSITY}
    whole = {g.name: g.levels[0] for g in groups}
    sparsity = next((g.levels[chosen[g.name]] for g in groups if g.name == SPARSITY), 0.0)
    return Point({n: w for n, w in widths.items() if w != whole[n]}, sparsity)


def _best(
    groups: Sequence[Group], group: Group, chosen: dict[str, int], cost: Cost, price: float
) -> int:
    def score(level: int) -> tuple[float, int]:
        point = point_of(groups, {**chosen, group.name: level})
        return group.drops[level] + price * cost.near(group.name, point), level

    return min(range(len(group.levels)), key=score)


def _predicted(groups: Sequence[Group], chosen: dict[str, int], cost: Cost) -> FrontPoint:
    point = point_of(groups, chosen)
    return FrontPoint(point, sum(g.drops[chosen[g.name]] for g in groups), cost.total(point))


def _prices(groups: Sequence[Group], dense: dict[str, int], cost: Cost) -> list[float]:
    """Multipliers from one at which nothing is removed to one at which all is at its least."""
    ratios = []
    for group in groups:
        whole = cost.near(group.name, point_of(groups, dense))
        for level, drop in enumerate(group.drops[1:], 1):
            saved = whole - cost.near(group.name, point_of(groups, {**dense, group.name: level}))
            if saved > 0:
                ratios.append(max(drop, 1e-12) / saved)
    if not ratios:
        return []
    low, high = math.log(min(ratios) / 2), math.log(max(ratios) * 16)
    return [math.exp(low + (high - low) * i / (PRICES - 1)) for i in range(PRICES)]


def _undominated(points: list[FrontPoint]) -> list[FrontPoint]:
    dense, *others = points
    kept = [dense]
    for candidate in sorted(others, key=lambda p: (p.distance, p.cost)):
        if candidate.cost < kept[-1].cost:
            kept.append(candidate)
    return kept

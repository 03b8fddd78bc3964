"""Bisection along the fronts, one lane per precision, shared by several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from ._candidate import Candidate
from ._front import FrontPoint
from ._log import WAIT

Lane = Generator[int, Candidate, None]
"""Yields the index of the next point to try, and is sent what was found."""

Attempt = Callable[[int], Candidate | None]
"""Tries a point: its candidate, or None while another process is at it."""


@dataclass
class Bounds:
    """Limits on cost and distance, from the points that any lane has tried.

    Attributes:
        cost: the lowest predicted cost within the bound: a point that costs more is not the answer.
        distance: the smallest predicted distance beyond the bound: further points would fail, too.
    """

    cost: float = math.inf
    distance: float = math.inf

    def learn(self, at: FrontPoint, found: Candidate) -> None:
        """Take a candidate into account."""
        if found.passed:
            self.cost = min(self.cost, at.cost)
        elif found.limit is not None:  # else it could not be built
            self.distance = min(self.distance, at.distance)


def lane(front: Sequence[FrontPoint], trials: int, bounds: Bounds, *, falling: bool) -> Lane:
    """Bisect for the furthest point within the bound.

    The interval of costs is halved, not the number of points: most points of a front may be tiny
    networks, far beyond any bound.

    Args:
        front: points; the first is the dense network.
        trials: number of points to try, at most.
        bounds: what other lanes have ruled out; gains what is found here.
        falling: true if the cost falls along the front, so that the furthest point is the
            cheapest. Otherwise, as for a bitstream whose quantisation uses up what the removal of
            channels leaves of the bound, points on both sides of the cheapest are tried.
    """
    seen: dict[int, Candidate] = {}
    seen[0] = yield 0
    if not seen[0].passed:  # this precision alone exceeds the bound
        return
    bounds.learn(front[0], seen[0])
    while len(seen) < min(trials, len(front)):
        index = _furthest(seen, front, bounds) if falling else _cheapest(seen, front)
        if index is None:
            return
        seen[index] = yield index
        bounds.learn(front[index], seen[index])


def _furthest(
    seen: dict[int, Candidate], front: Sequence[FrontPoint], bounds: Bounds
) -> int | None:
    passed = max(i for i, c in seen.items() if c.passed)
    low = max([passed, *(i for i, p in enumerate(front) if p.cost >= bounds.cost)])
    # Beyond a point that failed, none is tried.
    failed = [i for i, p in enumerate(front) if p.distance >= bounds.distance]
    high = min([len(front), *failed, *(i for i in seen if i > passed)])
    return _middle(front, low, high)


def _cheapest(seen: dict[int, Candidate], front: Sequence[FrontPoint]) -> int | None:
    costs = {i: c.cost for i, c in seen.items() if c.passed and c.cost is not None}
    best = min(costs, key=lambda i: (costs[i], -i), default=0)
    behind = min((i for i in seen if i > best), default=len(front))
    before = max((i for i in seen if i < best), default=best)
    found = _middle(front, best, behind)
    return _middle(front, before, best) if found is None else found


def _middle(front: Sequence[FrontPoint], low: int, high: int) -> int | None:
    """The point between two others whose cost is nearest to the mean of theirs, if there is one."""
    wanted = (front[low].cost + front[min(high, len(front) - 1)].cost) / 2
    return min(range(low + 1, high), key=lambda i: abs(front[i].cost - wanted), default=None)


def run_lanes(lanes: Sequence[tuple[Lane, Attempt]]) -> None:
    """Finish one lane after the other, as what the first ones find spares the others some points.

    While another process tries the next point of a lane, this one goes on with the lane behind it.
    """
    waiting = [(generator, attempt, next(generator)) for generator, attempt in lanes]
    while waiting:
        for position, (generator, attempt, index) in enumerate(waiting):
            if (found := attempt(index)) is None:
                continue
            try:
                waiting[position] = (generator, attempt, generator.send(found))
            except StopIteration:
                del waiting[position]
            break
        else:
            time.sleep(WAIT)

"""Bisection along the front, one lane per precision, shared by several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

from ._candidate import Candidate
from ._log import WAIT

Lane = Generator[int, Candidate, None]
"""Yields the index of the next point to try, and is sent what was found."""

Attempt = Callable[[int], Candidate | None]
"""Tries a point: its candidate, or None while another process is at it."""


def lane(costs: Sequence[float], trials: int, *, falling: bool) -> Lane:
    """Bisect for the furthest point within the bound.

    The interval of costs is halved, not the number of points: most points of a front may be tiny
    networks, far beyond any bound.

    Args:
        costs: predicted costs of the points on the front; the first is the dense network.
        trials: number of points to try, at most.
        falling: true if the cost falls along the front, so that the furthest point is the
            cheapest. Otherwise, as for a bitstream whose quantisation uses up what the removal of
            channels leaves of the bound, points on both sides of the cheapest are tried.
    """
    seen: dict[int, Candidate] = {}
    seen[0] = yield 0
    if not seen[0].passed:  # this precision alone exceeds the bound
        return
    while len(seen) < min(trials, len(costs)):
        index = _next(seen, costs, falling)
        if index is None:
            return
        seen[index] = yield index


def _next(seen: dict[int, Candidate], costs: Sequence[float], falling: bool) -> int | None:
    passed = [i for i, c in seen.items() if c.passed and c.cost is not None]
    best = min(passed, key=lambda i: (seen[i].cost, -i)) if not falling and passed else None
    low = best if best is not None else max(passed, default=0)
    # Beyond a point that failed, or that costs more, none is tried.
    high = min((i for i in seen if i > low), default=len(costs))
    if high - low > 1:
        return _middle(costs, low, high)
    if falling:
        return None
    before = max((i for i in seen if i < low), default=low)
    return _middle(costs, before, low) if low - before > 1 else None


def _middle(costs: Sequence[float], low: int, high: int) -> int:
    """The point between two others whose cost is nearest to the mean of theirs."""
    wanted = (costs[low] + costs[min(high, len(costs) - 1)]) / 2
    return min(range(low + 1, high), key=lambda i: abs(costs[i] - wanted))


def run_lanes(lanes: Sequence[tuple[Lane, Attempt]]) -> None:
    """Advance all lanes until each is done.

    A lane whose next point is being tried by another process waits, while the others go on.
    """
    waiting = [(generator, attempt, next(generator)) for generator, attempt in lanes]
    while waiting:
        left, moved = [], False
        for generator, attempt, index in waiting:
            found = attempt(index)
            if found is None:
                left.append((generator, attempt, index))
                continue
            moved = True
            try:
                left.append((generator, attempt, generator.send(found)))
            except StopIteration:
                continue
        waiting = left
        if waiting and not moved:
            time.sleep(WAIT)

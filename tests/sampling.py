"""Samples: members of a family for every run, and a random part of the exhaustive tests.

``@pytest.mark.sampled(3)`` leaves three of a test's parameter sets in every run; the others are
exhaustive.

``pytest -m exhaustive --sample-exhaustive=420 --seed=0`` draws tests until 420 seconds have passed;
the others are skipped. Laws about one case stay together, since they share its preparation.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

Item = TypeVar("Item")


def group_of(name: str) -> str:
    """The tests that are drawn together: those of one file with the same parameters.

    >>> group_of("tests/test_simplify_cases.py::test_outputs[pool: max-0.3-zero]")
    'tests/test_simplify_cases.py[pool: max-0.3-zero]'
    """
    file, _, function = name.partition("::")
    _, bracket, parameters = function.partition("[")
    return f"{file}{bracket}{parameters}" if bracket else name


def drawn(items: Sequence[Item], seed: int, name: Callable[[Item], str]) -> list[Item]:
    """The items in a random order that depends on the seed and their names alone."""
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=name):
        groups.setdefault(group_of(name(item)), []).append(item)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    return [item for group in order for item in groups[group]]


def spaced(count: int, members: int) -> list[int]:
    """Places of members of a family, evenly spaced, the first and the last among them.

    >>> spaced(10, 4)
    [0, 3, 6, 9]
    """
    if members >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(members - 1, 1)) for i in range(members)]


def mark_members(items: Sequence[pytest.Item]) -> None:
    """Mark as exhaustive what ``sampled`` leaves out. A test that is asked for alone runs."""
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("exhaustive"):
            families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for family in families.values():
        (members,) = family[0].get_closest_marker("sampled").args  # type: ignore[union-attr]
        kept = set(spaced(len(family), members))
        for place, item in enumerate(family):
            if place not in kept:
                item.add_marker(pytest.mark.exhaustive)


class Sampler:
    """A pytest plugin that draws the order and skips tests once the time has passed.

    Args:
        seconds: time for the tests of this process, its start included. The test in progress is
            finished.
        seed: draws the order.
        clock: seconds since anything, for tests.
    """

    def __init__(
        self, seconds: float, seed: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock, self.seed = clock, seed
        self.end = clock() + seconds

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = drawn(items, self.seed, lambda item: item.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if self.clock() >= self.end:
            pytest.skip("beyond the time of the sample")

"""A sample of the exhaustive tests: the same order for the same seed, for as long as is allowed.

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

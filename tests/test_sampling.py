"""The sample of the exhaustive tests: one seed, one order; nothing starts when the time is over."""

from __future__ import annotations

import pytest

from sampling import Sampler, drawn, group_of

NAMES = [
    f"tests/test_{file}.py::test_{law}[{case}-{number}]"
    for file in "ab"
    for law in ("law", "other")
    for case in ("pool", "gate: sum")
    for number in range(5)
] + ["tests/test_a.py::test_alone", "tests/test_a.py::TestIt::test_alone"]


def test_order_depends_on_the_seed_alone() -> None:
    order = drawn(NAMES, 0, str)
    assert sorted(order) == sorted(NAMES)
    assert drawn(NAMES[::-1], 0, str) == order
    assert drawn(NAMES, 1, str) != order != NAMES


def test_laws_of_one_case_stay_together() -> None:
    groups = [group_of(name) for name in drawn(NAMES, 3, str)]
    first = {group: groups.index(group) for group in groups}
    for group, start in first.items():
        assert groups[start : start + groups.count(group)] == [group] * groups.count(group)
    assert max(groups.count(group) for group in groups) == 2


def test_nothing_starts_when_the_time_is_over() -> None:
    now = [100.0]
    sampler = Sampler(20, 0, clock=lambda: now[0])
    sampler.pytest_runtest_setup()
    now[0] = 119.9
    sampler.pytest_runtest_setup()
    now[0] = 120.0
    with pytest.raises(pytest.skip.Exception, match="time of the sample"):
        sampler.pytest_runtest_setup()

"""The sample of the exhaustive tests: one seed, one order; nothing starts when the time is over."""

from __future__ import annotations

import pytest

from sampling import Sampler, drawn, group_of, mark_members, spaced

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


class Marked:
    """As much of a pytest item as the marking looks at."""

    def __init__(self, nodeid: str, *markers: pytest.MarkDecorator) -> None:
        self.nodeid, self.markers = nodeid, [m.mark for m in markers]

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next((mark for mark in self.markers if mark.name == name), None)

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.markers.append(marker.mark)


def test_as_many_members_of_a_family_stay_as_are_asked_for() -> None:
    items = [Marked(f"a.py::law[{i}]", pytest.mark.sampled(3)) for i in range(7)]
    items += [Marked(f"a.py::other[{i}]") for i in range(4)]
    items += [Marked("a.py::alone[5]", pytest.mark.sampled(1))]
    mark_members(items)  # type: ignore[arg-type]
    kept = [item.nodeid for item in items if item.get_closest_marker("exhaustive") is None]
    assert kept[:3] == ["a.py::law[0]", "a.py::law[3]", "a.py::law[6]"]
    assert len(kept) == 3 + 4 + 1
    assert spaced(5, 1) == [0]
    assert spaced(2, 9) == [0, 1]


def test_nothing_starts_when_the_time_is_over() -> None:
    now = [100.0]
    sampler = Sampler(20, 0, clock=lambda: now[0])
    sampler.pytest_runtest_setup()
    now[0] = 119.9
    sampler.pytest_runtest_setup()
    now[0] = 120.0
    with pytest.raises(pytest.skip.Exception, match="time of the sample"):
        sampler.pytest_runtest_setup()

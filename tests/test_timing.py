"""Laws of measured times: turns, spreads, clocks."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snello.timing import cpu_seconds, now, spread_of, synchronise, take_turns, timed

VALUES = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=30)


@given(VALUES)
def test_the_spread_is_that_of_linear_interpolation(values: list[float]) -> None:
    expected = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    )
    assert list(spread_of(values)) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-6)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
def test_the_order_of_the_values_does_not_matter(values: list[float]) -> None:
    assert spread_of(values) == spread_of(reversed(values))
    found = spread_of(values)
    assert min(values) <= found.p10 <= found.median <= found.p90 <= max(values)


@given(st.integers(1, 5), st.integers(0, 7), st.integers(0, 4))
def test_each_round_starts_with_the_next_name(count: int, repeats: int, warmup: int) -> None:
    names, calls = [str(i) for i in range(count)], []

    def measure(name: str) -> int:
        calls.append(name)
        return len(calls)

    found = take_turns(names, measure, repeats, warmup)
    assert list(found) == names
    assert [len(found[name]) for name in names] == [repeats] * count
    rounds = [calls[i : i + count] for i in range(0, len(calls), count)]
    assert len(rounds) == warmup + repeats
    for turn, order in enumerate(rounds):
        assert order[0] == names[turn % count]
        assert sorted(order) == names
    if repeats:
        assert min(min(numbers) for numbers in found.values()) == warmup * count + 1


def test_the_turns_of_the_device_kit_are_the_same() -> None:
    """The kit's script is copied to boards without snello, so it has a loop of its own."""
    from seams.deploy import device_bench as bench

    for count, repeats, warmup in ((1, 3, 0), (2, 4, 1), (3, 5, 2)):
        names = [str(i) for i in range(count)]
        calls: list[list[str]] = [[], []]
        for take, seen in zip((take_turns, bench.take_turns), calls, strict=True):
            take(names, lambda name, seen=seen: seen.append(name) or 0.0, repeats, warmup)
        assert calls[0] == calls[1]


def test_nothing_to_time_takes_no_turns() -> None:
    assert take_turns([], lambda name: 0.0, 3, 1) == {}


def test_a_call_is_timed_and_its_result_kept() -> None:
    result, seconds = timed(lambda: time.sleep(0.02) or "done")
    assert result == "done"
    assert seconds >= 0.02


def test_sleeping_takes_wall_time_but_no_cpu_time() -> None:
    _, wall = timed(lambda: time.sleep(0.1))
    _, cpu = timed(lambda: time.sleep(0.1), clock=cpu_seconds)
    assert cpu < 0.05 < wall


def test_the_clock_goes_forward_on_any_spelling_of_the_cpu() -> None:
    for device in ("cpu", "cpu:0", torch.device("cpu")):
        synchronise(device)
        assert now(device) <= now(device)

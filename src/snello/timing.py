"""Measured times: clocks that wait for the device, calls timed in turns, medians with their spread.

>>> times = take_turns(["plain", "lean"], lambda name: timed(models[name])[1], 50, warmup=10)
>>> spread_of(times["lean"]).median / spread_of(times["plain"]).median

Ratios of times are only fair if both were taken in the same run, in turns.
`deploy/_device_bench.py` keeps a turn-taking loop of its own, because it is copied to boards that
have neither torch nor snello.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Spread(NamedTuple):
    """Median of some values and the range that the middle 80 % of them lie in.

    Attributes:
        median: 50th percentile.
        p10: 10th percentile.
        p90: 90th percentile.
    """

    median: float
    p10: float
    p90: float


def spread_of(values: Iterable[float]) -> Spread:
    """Median, 10th and 90th percentile, interpolated linearly between neighbours.

    Args:
        values: one or more numbers, in any order.
    """
    found = list(values)
    if len(found) == 1:  # statistics.quantiles refuses a single value before Python 3.13
        return Spread(*found * 3)
    deciles = statistics.quantiles(found, n=10, method="inclusive")
    return Spread(statistics.median(found), deciles[0], deciles[-1])


def synchronise(device: torch.device | str) -> None:
    """Wait until a device has finished the work queued on it; the CPU never queues any."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def now(device: torch.device | str = "cpu") -> float:
    """Seconds on the wall clock, read once the device has finished its queued work."""
    synchronise(device)
    return time.perf_counter()


def cpu_seconds(device: torch.device | str = "cpu") -> float:
    """CPU seconds of all threads of this process: on a busy machine steadier than the wall clock.

    Args:
        device: the device to wait for before the clock is read.
    """
    synchronise(device)
    return time.process_time()


def work_seconds(device: torch.device | str = "cpu") -> float:
    """CPU seconds of this process; for work on an accelerator, those of the wall clock once it is done.

    Args:
        device: where the work runs; it is waited for.
    """
    return cpu_seconds() if torch.device(device).type == "cpu" else now(device)


def timed(
    call: Callable[[], T],
    device: torch.device | str = "cpu",
    clock: Callable[[torch.device | str], float] = now,
) -> tuple[T, float]:
    """Call something once and time it.

    Args:
        call: what to time.
        device: the device that it computes on.
        clock: `now` or `cpu_seconds`.

    Returns:
        The result of the call, and the seconds that it took.
    """
    start = clock(device)
    result = call()
    return result, clock(device) - start


def take_turns(
    names: Sequence[str], measure: Callable[[str], T], repeats: int, warmup: int = 0
) -> dict[str, list[T]]:
    """Measure several things in rounds, each of which starts with the next name.

    A disturbance of the machine then falls on all of them alike, and none always inherits the
    caches of the same neighbour.

    Args:
        names: names of the things to measure.
        measure: runs the named one once and returns its measurement.
        repeats: rounds that count.
        warmup: rounds before, whose measurements are dropped.

    Returns:
        Name -> measurements in the order of the rounds.
    """
    found: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        first = turn % len(names) if names else 0
        for name in (*names[first:], *names[:first]):
            measured = measure(name)
            if turn >= warmup:
                found[name].append(measured)
    return found

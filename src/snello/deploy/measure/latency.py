"""Wall-clock latency of several models, interleaved so that ratios are comparable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snello.deploy._runners import Runner, torch_threads
from snello.errors import ConfigError
from snello.timing import spread_of, take_turns, timed


@dataclass(frozen=True)
class Latency:
    """Latency of one call, with the conditions of the measurement.

    Attributes:
        runtime: name of the runtime.
        median_ms: median over the repeats, in milliseconds.
        p10_ms: 10th percentile, in milliseconds.
        p90_ms: 90th percentile, in milliseconds.
        batch: number of samples per call.
        threads: number of threads of the runtime.
        warmup: number of untimed calls before the timed ones.
        repeats: number of timed calls.
        device: device that ran the model.
    """

    runtime: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    batch: int
    threads: int
    warmup: int
    repeats: int
    device: str


def latencies(
    runners: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
    batch: int = 1,
    device: str = "cpu",
) -> dict[str, Latency]:
    """Time several models in one run, interleaved.

    Each repeat calls every runner once, starting with the next runner, so that a temporary slowdown
    of the machine affects all of them and no runner always follows the same one.

    Args:
        runners: name -> runner from [`pytorch_runner`][snello.deploy.pytorch_runner] or
            [`file_runner`][snello.deploy.formats.file_runner], or any callable that runs PyTorch
            code.
        repeats: number of timed calls of each.
        warmup: number of untimed calls of each before them.
        threads: torch's number of threads during the run (restored afterwards).
        batch: samples per call, reported for plain callables; a [`Runner`][snello.deploy.Runner]
            has its own.
        device: device of plain callables; timing synchronises with an accelerator.

    Returns:
        Name -> time, in the order of the runners.

    Raises:
        ConfigError: for counts out of range, or a runner built with another number of threads.
    """
    check_counts(repeats=(repeats, 1), warmup=(warmup, 0), threads=(threads, 1), batch=(batch, 1))
    made = {
        name: call if isinstance(call, Runner) else Runner("pytorch", batch, device, None, call)
        for name, call in runners.items()
    }
    for name, runner in made.items():
        if runner.threads not in (None, threads):
            raise ConfigError(
                f"runner {name!r} was built with {runner.threads} threads, the others run with "
                f"{threads}: build it with the same number, otherwise the ratio is meaningless"
            )
    with torch_threads(threads):
        times = take_turns(list(made), lambda name: _time(made[name]), repeats, warmup)
    return {name: _summary(made[name], times[name], threads, warmup) for name in made}


def _time(runner: Runner) -> float:
    """Milliseconds of one call."""
    return timed(runner, runner.device)[1] * 1e3


def _summary(runner: Runner, times: list[float], threads: int, warmup: int) -> Latency:
    spread = spread_of(times)
    return Latency(
        runtime=runner.runtime,
        median_ms=spread.median,
        p10_ms=spread.p10,
        p90_ms=spread.p90,
        batch=runner.batch,
        threads=threads,
        warmup=warmup,
        repeats=len(times),
        device=runner.device,
    )


def check_counts(**counts: tuple[int, int]) -> None:
    """Check counts, given with the least that each may be.

    Raises:
        ConfigError: for the first that is less.
    """
    for name, (value, least) in counts.items():
        if value < least:
            raise ConfigError(f"{name}={value}: choose at least {least}")

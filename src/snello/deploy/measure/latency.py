"""Wall-clock time, measured so that ratios are honest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from snello.deploy._runners import Runner, torch_threads
from snello.errors import ConfigError
from snello.timing import spread_of, take_turns, timed


@dataclass(frozen=True)
class Latency:
    """The time of one call.

    Attributes:
        runtime: what ran the model.
        median_ms: median over the repeats, in milliseconds.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        batch: samples per call.
        threads: threads of the runtime.
        warmup: untimed calls before.
        repeats: timed calls.
        device: where it ran.
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
    """Time several models in one run, in turns.

    Each repeat calls every runner once, and each repeat begins with the next one: what slows the
    machine for a while slows all of them, and none always runs after the same neighbour.

    Args:
        runners: name -> what to time; from :func:`pytorch_runner` and :func:`file_runner`, or any
            callable that runs PyTorch code.
        repeats: timed calls of each.
        warmup: untimed calls of each before.
        threads: torch's thread count during the run (restored afterwards).
        batch: samples per call, reported for plain callables; a :class:`Runner` knows its own.
        device: likewise; the clock waits for an accelerator to finish.

    Returns:
        Name -> time, in the order of the runners.

    Raises:
        ConfigError: for counts out of range, or a runner built with another number of threads.
    """
    _check(repeats=(repeats, 1), warmup=(warmup, 0), threads=(threads, 1), batch=(batch, 1))
    made = {
        name: call if isinstance(call, Runner) else Runner("pytorch", batch, device, None, call)
        for name, call in runners.items()
    }
    for name, runner in made.items():
        if runner.threads not in (None, threads):
            raise ConfigError(
                f"runner {name!r} was built with {runner.threads} threads, the others run with {threads}; "
                "build it with the same number, or the ratio says nothing"
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


def _check(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if value < least:
            raise ConfigError(f"{name}={value}: choose at least {least}")

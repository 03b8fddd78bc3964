"""Several processes that should do the same: who is missing, or does something else, is named and
not waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed, nn

from pair import end, in_two_processes
from snello import Pruner
from snello.errors import ConfigError
from snello.processes import meet
from snello.pruning import Plateau

SECONDS = 8

if not distributed.is_available():
    pytest.skip("needs torch.distributed", allow_module_level=True)


def _run(rank: int, what: str) -> tuple[float, str]:
    """Seconds, and what was said."""
    call = CASES[what](rank)
    distributed.barrier()
    started = time.perf_counter()
    try:
        call()
        said = "fine"
    except ConfigError as error:
        said = str(error)
    seconds = time.perf_counter() - started
    if what == "one rank":
        time.sleep(SECONDS)  # as in its training step
    return seconds, said


def _said(what: str) -> list[tuple[float, str]]:
    return in_two_processes(_run, what, timeout=SECONDS)


def _pruner(**options: Any) -> Pruner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Pruner(model, optimizer, lambda m: float(m(torch.ones(1, 4)).square().sum()), **options)


Call = Callable[[], Any]


def _all(rank: int) -> Call:
    pruner = _pruner(schedule=Plateau(1))
    return lambda: [pruner.step(1.0) for _ in range(5)]


def _one_rank(rank: int) -> Call:
    pruner = _pruner()
    return lambda: None if rank else pruner.step(1.0)


def _other_schedule(rank: int) -> Call:
    pruner = _pruner(schedule=Plateau(1 + rank))
    return lambda: pruner.step(1.0)


def _other_state(rank: int) -> Call:
    pruner = _pruner(schedule=Plateau(3))
    pruner.schedule.bad = rank  # type: ignore[attr-defined]
    return lambda: pruner.step(1.0)


def _other_call(rank: int) -> Call:
    return lambda: meet("Pruner.step" if rank else "NEq.step")


CASES: dict[str, Callable[[int], Call]] = {
    "all": _all, "one rank": _one_rank, "schedule": _other_schedule, "state": _other_state, "call": _other_call,
}  # fmt: skip


@pytest.mark.slow
def test_steps_on_every_rank_are_taken() -> None:
    assert [said for _, said in _said("all")] == ["fine", "fine"]


@pytest.mark.slow
def test_a_step_on_one_rank_is_told_before_the_collective_aborts() -> None:
    (seconds, said), (_, other) = _said("one rank")
    end()  # from now on these ranks would count their calls differently
    assert said == (
        "Pruner.step on rank 0: rank 1 of 2 did not come: call it on every rank, as often and in the same order as on "
        "the others"
    )
    assert seconds < SECONDS + 1
    assert other == "fine"


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("what", "words"),
    [("schedule", "'pwe': 2"), ("state", "'bad': 1"), ("call", "rank 1 calls Pruner.step")],
)
def test_ranks_that_disagree_are_found_at_once(what: str, words: str) -> None:
    for seconds, said in _said(what):
        assert said.startswith("the ranks do not do the same: rank 0 calls ")
        assert words in said
        assert seconds < SECONDS * 0.8, "they were not waited for"


def test_one_process_meets_nobody() -> None:
    meet("Pruner.step", "anything")

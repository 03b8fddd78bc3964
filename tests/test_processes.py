"""Several processes that should do the same: who is missing, or does something else, is named and
not waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from snello import Pruner
from snello.errors import ConfigError
from snello.processes import meet
from snello.pruning import Plateau

SECONDS = 8

if not distributed.is_available():
    pytest.skip("needs torch.distributed", allow_module_level=True)


def _run(rank: int, folder: str, what: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=SECONDS),
    )
    call = CASES[what](rank)
    distributed.barrier()
    started = time.perf_counter()
    try:
        call()
        said = "fine"
    except ConfigError as error:
        said = str(error)
    Path(folder, f"said-{rank}").write_text(f"{time.perf_counter() - started:.2f} {said}")
    if what == "one rank":
        time.sleep(SECONDS)  # as in its training step
    distributed.destroy_process_group()


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


def _said(what: str, folder: Path) -> list[tuple[float, str]]:
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run, args=(rank, str(folder), what)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    texts = [(folder / f"said-{rank}").read_text().partition(" ") for rank in range(2)]
    return [(float(seconds), said) for seconds, _, said in texts]


@pytest.mark.slow
def test_steps_on_every_rank_are_taken(tmp_path: Path) -> None:
    assert [said for _, said in _said("all", tmp_path)] == ["fine", "fine"]


@pytest.mark.slow
def test_a_step_on_one_rank_is_told_before_the_collective_aborts(tmp_path: Path) -> None:
    (seconds, said), (_, other) = _said("one rank", tmp_path)
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
def test_ranks_that_disagree_are_found_at_once(what: str, words: str, tmp_path: Path) -> None:
    for seconds, said in _said(what, tmp_path):
        assert said.startswith("the ranks do not do the same: rank 0 calls ")
        assert words in said
        assert seconds < SECONDS * 0.8, "they were not waited for"


def test_one_process_meets_nobody() -> None:
    meet("Pruner.step", "anything")

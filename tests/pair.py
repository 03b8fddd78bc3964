"""Two processes that form a gloo group when a test asks for one, and wait between tests.

Most of the time of a test with processes of its own is their import of torch. A test process keeps
one pair; a function that fails or hangs in it ends the pair, and the next test starts another.
"""

from __future__ import annotations

import io
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

SECONDS = 120
"""Time for one function."""


def in_two_processes(
    function: Callable[..., Any], *arguments: Any, timeout: float = SECONDS
) -> list[Any]:
    """Call `function(rank, *arguments)` in both processes of a group, and return both results.

    Args:
        function: a function of a module, since the processes import it by name.
        arguments: what can be pickled.
        timeout: seconds that a collective of the group waits.

    Raises:
        AssertionError: with the traceback of a process in which it failed.
    """
    return begin(function, *arguments, timeout=timeout)()


def begin(
    function: Callable[..., Any], *arguments: Any, timeout: float = SECONDS
) -> Callable[[], list[Any]]:
    """The same, without waiting: call what is returned for the results."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    if not _pair:
        _pair.extend(map(_start, range(2)))
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    for _, pipe in _pair:
        pipe.send((function, arguments, f"{folder.name}/store", timeout))

    def results() -> list[Any]:
        with folder:
            try:
                return [_result(pipe, rank) for rank, (_, pipe) in enumerate(_pair)]
            except BaseException:
                end()
                raise

    return results


def end() -> None:
    """End the pair: what follows starts another."""
    for process, pipe in _pair:
        process.kill()
        process.join()
        pipe.close()
    _pair.clear()


_pair: list[tuple[BaseProcess, Connection]] = []


def _start(rank: int) -> tuple[BaseProcess, Connection]:
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(rank, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process ends the pipe
    return process, ours


def _result(pipe: Connection, rank: int) -> Any:
    assert pipe.poll(SECONDS), f"the process of rank {rank} has no result after {SECONDS} s"
    try:
        failed, content = pipe.recv()
    except EOFError:
        raise AssertionError(f"the process of rank {rank} has ended") from None
    assert not failed, f"rank {rank}: {content}"
    return torch.load(io.BytesIO(content), weights_only=False)


def _serve(rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments, store, timeout = pipe.recv()
        except EOFError:  # the tests are over
            return
        torch.manual_seed(0)
        try:
            distributed.init_process_group(
                "gloo", init_method=Path(store).as_uri(), rank=rank, world_size=2,
                timeout=timedelta(seconds=timeout),
            )  # fmt: skip
            result = io.BytesIO()
            torch.save(function(rank, *arguments), result)
            distributed.destroy_process_group()
        except BaseException:
            pipe.send((True, traceback.format_exc()))
        else:
            pipe.send((False, result.getvalue()))

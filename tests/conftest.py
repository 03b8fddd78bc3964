"""Fixtures of more than one test file."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator

import pytest
import torch

from sampling import Sampler, mark_members
from snello.codec import require_nncodec
from snello.errors import MissingExtraError

# Where the codec was built into a folder of its own, `importorskip` finds it from here on.
with contextlib.suppress(MissingExtraError):
    require_nncodec()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("snello")
    group.addoption(
        "--sample-exhaustive",
        type=float,
        metavar="SECONDS",
        help="run tests in a random order until so many seconds have passed; with -m exhaustive",
    )
    group.addoption("--seed", type=int, default=0, help="draws the order of the sample")


def pytest_configure(config: pytest.Config) -> None:
    seconds = config.getoption("--sample-exhaustive")
    if seconds is not None:
        config.pluginmanager.register(Sampler(seconds, config.getoption("--seed")))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect tests and libraries without the garbage collector.

    It would visit their objects, which stay to the end, again and again: a third of the seconds.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_members(items)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small networks, which more threads slow down, and for equal bits: sums in another order
    differ.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; tests that use it are skipped on a machine without one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch.cuda.is_available() is false")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def rules_do_not_fail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that fails costs savings alone, so that no other law would notice: here it is an
    error.
    """
    if request.node.get_closest_marker("failing_rule") is None:

        def refuse(refused: object, failed: Exception) -> None:
            raise AssertionError(f"a rule failed: {failed}") from failed

        monkeypatch.setattr(
            importlib.import_module("snello.simplification.sequence"), "_refuse", refuse
        )

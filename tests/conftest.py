"""Fixtures of more than one test file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small networks, which more threads slow down, and for equal bits: sums in another order differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whatever_it_costs() -> Iterator[None]:
    """Gates are made on small images, too, on which they save no time: by default they would not be."""
    relieved = importlib.import_module("snello.simplify._simplify").RELIEVED
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(relieved, "bytes", lambda relief, *counts: relief.saves_bytes(*counts))
        yield

"""Batches of samples and their indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Collate:
    """A collate function that can be sent to worker processes, if the inner one can."""

    def __init__(self, inner: Callable[[list[Any]], Any]) -> None:
        self.inner = inner

    def __call__(self, pairs: Any) -> tuple[Any, Tensor]:
        if isinstance(pairs, tuple):  # a batch that the dataset has put together itself
            return self.inner(pairs[0]), pairs[1]
        samples, places = zip(*pairs, strict=True)
        return self.inner(list(samples)), torch.tensor(places)

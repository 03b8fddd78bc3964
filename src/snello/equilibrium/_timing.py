"""How long the backward takes with and without freezing, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snello.equilibrium._flops import undisturbed
from snello.equilibrium._neq import SelectiveUpdate
from snello.errors import ConfigError
from snello.graph import as_inputs


@dataclass(frozen=True)
class BackwardTiming:
    """Dense and sparse backward of the same model on the same batch, interleaved.

    Attributes:
        dense_ms: median of the plain backward, in milliseconds.
        dense_p10: its 10th percentile.
        dense_p90: its 90th percentile.
        sparse_ms: median of the backward with the frozen neurons skipped.
        sparse_p10: its 10th percentile.
        sparse_p90: its 90th percentile.
        repeats: measurements of each, after one warm-up.
        device: where it was measured.
        threads: number of intra-op threads of the CPU.
    """

    dense_ms: float
    dense_p10: float
    dense_p90: float
    sparse_ms: float
    sparse_p10: float
    sparse_p90: float
    repeats: int
    device: str
    threads: int

    @property
    def ratio(self) -> float:
        """Sparse over dense: below 1 the frozen neurons save time."""
        return self.sparse_ms / self.dense_ms


def time_backward(
    neq: SelectiveUpdate,
    inputs: Tensor | tuple[Tensor, ...],
    targets: Any,
    loss_fn: Callable[[Any, Any], Tensor],
    repeats: int = 20,
) -> BackwardTiming:
    """Time the backward pass alone, dense and sparse in turn, with the neurons that are frozen now.

    Gradients, BatchNorm statistics and random generators are put back; no optimizer step is taken.

    Args:
        neq: the frozen model.
        inputs: one batch.
        targets: its targets, the second argument of the loss.
        loss_fn: ``loss_fn(output, targets)`` -> scalar.
        repeats: measurements of each kind.

    Raises:
        ConfigError: for fewer than one repeat.
    """
    if repeats < 1:
        raise ConfigError(f"repeats: must be at least 1, not {repeats}")
    args = as_inputs(inputs)
    times: dict[bool, list[float]] = {True: [], False: []}
    with undisturbed(neq.model):
        for turn in range(repeats + 1):
            # Which one goes first alternates, lest one always inherits the other's caches.
            for dense in (True, False) if turn % 2 else (False, True):
                with neq.freezer.dense() if dense else nullcontext():
                    elapsed = _once(neq.model, args, targets, loss_fn)
                if turn:  # the first turn warms up
                    times[dense].append(elapsed)
    dense_spread, sparse_spread = _spread(times[True]), _spread(times[False])
    return BackwardTiming(
        *dense_spread, *sparse_spread, repeats, str(args[0].device), torch.get_num_threads()
    )


def _once(model: Any, args: tuple[Tensor, ...], targets: Any, loss_fn: Callable[[Any, Any], Tensor]) -> float:
    for parameter in model.parameters():
        parameter.grad = None
    loss = loss_fn(model(*args), targets)
    _synchronise(loss)
    start = time.perf_counter()
    loss.backward()  # type: ignore[no-untyped-call]
    _synchronise(loss)
    return (time.perf_counter() - start) * 1e3


def _synchronise(tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize(tensor.device)


def _spread(times: list[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    return statistics.median(times), deciles[0], deciles[-1]

"""Time of a training step with and without freezing, both measured in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from snello.errors import ConfigError, check_count
from snello.graph import Example, Inputs
from snello.optimizers import parameters_of
from snello.timing import spread_of, take_turns, timed

from ._flops import loss_of, undisturbed

if TYPE_CHECKING:  # which decides by these times, too
    from ._neq import SelectiveUpdate
    from ._selection import Selection

_DENSE = "dense"
_KINDS = (_DENSE, "sparse")


@dataclass(frozen=True)
class PhaseTiming:
    """One phase of a training step, plain and with the frozen neurons skipped.

    Attributes:
        dense_ms: median of the plain phase, in milliseconds.
        dense_p10: its 10th percentile.
        dense_p90: its 90th percentile.
        sparse_ms: median with the frozen neurons skipped.
        sparse_p10: its 10th percentile.
        sparse_p90: its 90th percentile.
    """

    dense_ms: float
    dense_p10: float
    dense_p90: float
    sparse_ms: float
    sparse_p10: float
    sparse_p90: float

    @property
    def ratio(self) -> float:
        """Sparse over dense: below 1 the frozen neurons save time."""
        return self.sparse_ms / self.dense_ms


@dataclass(frozen=True)
class BackwardTiming(PhaseTiming):
    """Times of the backward pass on one batch, dense and sparse in turns.

    Attributes:
        repeats: measurements of each, after one warm-up.
        device: where it was measured.
        threads: number of intra-op threads of the CPU.
    """

    repeats: int
    device: str
    threads: int


def time_backward(
    neq: SelectiveUpdate,
    inputs: Example,
    targets: Any,
    loss_fn: Callable[[Any, Any], Tensor],
    repeats: int = 20,
) -> BackwardTiming:
    """Time the backward pass with the present frozen neurons, dense and sparse in turns.

    Gradients, BatchNorm statistics and random generators are restored; no optimizer step is taken.

    Args:
        neq: the selective update with the model and its masks.
        inputs: one batch: a tensor, or the model's arguments as a tuple or by name.
        targets: its targets, the second argument of the loss.
        loss_fn: `loss_fn(output, targets)` -> scalar.
        repeats: measurements of each kind.

    Raises:
        ConfigError: for fewer than one repeat.
        ModelError: if the loss requires no gradient.
    """
    batch = _checked(repeats, inputs)
    device, loss = batch.tensors()[0].device, _loss(neq, batch, targets, loss_fn)

    def measure(kind: str) -> float:
        with neq.freezer.dense() if kind == _DENSE else nullcontext():
            return _passes(neq, device, loss)[1]

    with undisturbed(neq.model):
        times = take_turns(_KINDS, measure, repeats, warmup=1)
    spreads = [spread_of(times[kind]) for kind in _KINDS]
    return BackwardTiming(*spreads[0], *spreads[1], repeats, str(device), torch.get_num_threads())


@dataclass(frozen=True)
class StepTiming:
    """Times of a training step on one batch, dense and sparse in turns.

    Attributes:
        forward: forward pass and loss.
        backward: backward pass.
        optimizer: `optimizer.step()`; in the sparse step this includes holding the frozen rows.
        step: the three together.
        repeats: measurements of each, after one warm-up.
        batch: samples of the batch.
        device: where it was measured.
        threads: number of intra-op threads of the CPU.
    """

    forward: PhaseTiming
    backward: PhaseTiming
    optimizer: PhaseTiming
    step: PhaseTiming
    repeats: int
    batch: int
    device: str
    threads: int


def time_step(
    neq: SelectiveUpdate,
    inputs: Example,
    targets: Any,
    loss_fn: Callable[[Any, Any], Tensor],
    repeats: int = 20,
) -> StepTiming:
    """Time forward, backward and optimizer step, dense and sparse in turns.

    The sparse step skips the neurons frozen now; the dense optimizer step is that of a plain
    optimizer with the same state. Weights, optimizer state, gradients, BatchNorm statistics, random
    generators and the state of the selection are restored.

    Args:
        neq: the selective update with the model and its masks.
        inputs: one batch: a tensor, or the model's arguments as a tuple or by name.
        targets: its targets, the second argument of the loss.
        loss_fn: `loss_fn(output, targets)` -> scalar.
        repeats: measurements of each kind.

    Raises:
        ConfigError: for fewer than one repeat, or a model that was frozen without an optimizer.
        ModelError: if the loss requires no gradient.
    """
    batch = _checked(repeats, inputs)
    device, loss = batch.tensors()[0].device, _loss(neq, batch, targets, loss_fn)
    if not neq.optimizers:
        raise ConfigError("time_step: NEq was given no optimizer whose steps could be timed")
    # Shallow copies share parameters and state with the originals, but have no hooks.
    plain_ones = [copy.copy(optimizer) for optimizer in neq.optimizers]

    def measure(kind: str) -> tuple[float, float, float]:
        dense = kind == _DENSE
        with _as_if_dense(neq) if dense else nullcontext():
            passes = _passes(neq, device, loss)
            stepping = plain_ones if dense else neq.optimizers
            elapsed = (*passes, _update_ms(stepping, device))
        weights_back()  # many steps on the same batch could diverge
        return elapsed

    with (
        undisturbed(neq.model),
        _put_back(neq.optimizers) as weights_back,
        _unchanged(neq.selection),
    ):
        times = take_turns(_KINDS, measure, repeats, warmup=1)
    plain, skipping = ([*zip(*times[kind], strict=True)] for kind in _KINDS)
    forward, backward, update = (_phase(*both) for both in zip(plain, skipping, strict=True))
    return StepTiming(
        forward=forward,
        backward=backward,
        optimizer=update,
        step=_phase(*([sum(t) for t in times[kind]] for kind in _KINDS)),
        repeats=repeats,
        batch=batch.samples,
        device=str(device),
        threads=torch.get_num_threads(),
    )


def _checked(repeats: int, inputs: Example) -> Inputs:
    check_count("repeats", repeats)
    return Inputs.of(inputs)


def _loss(
    neq: SelectiveUpdate, batch: Inputs, targets: Any, loss_fn: Callable[[Any, Any], Tensor]
) -> Callable[[], Tensor]:
    return lambda: loss_of(neq.model, batch, lambda output: loss_fn(output, targets))


def _passes(
    neq: SelectiveUpdate, device: torch.device, loss_of_batch: Callable[[], Tensor]
) -> tuple[float, float]:
    """Milliseconds of a forward and of a backward pass, from empty gradients."""
    for parameter in neq.model.parameters():
        parameter.grad = None
    loss, forward = timed(loss_of_batch, device)
    _, backward = timed(loss.backward, device)  # type: ignore[no-untyped-call]
    return forward * 1e3, backward * 1e3


def _update_ms(optimizers: Sequence[Optimizer], device: torch.device) -> float:
    """Milliseconds of one step of every optimizer."""
    return timed(lambda: [optimizer.step() for optimizer in optimizers], device)[1] * 1e3


@contextmanager
def trial(update: SelectiveUpdate, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Freeze neurons by masks inside the block, and leave no trace of it in the training.

    Freezing erases momentum and gradients, which thawing alone would not bring back.
    """
    freezer = update.freezer
    before = freezer.frozen
    with undisturbed(update.model), _put_back(freezer.hold.optimizers):
        freezer.apply(masks)
        try:
            yield
        finally:
            freezer.apply(before)


@contextmanager
def _as_if_dense(neq: SelectiveUpdate) -> Iterator[None]:
    with neq.freezer.dense(), neq.freezer.hold.paused():
        yield


@contextmanager
def _put_back(optimizers: Sequence[Optimizer]) -> Iterator[Callable[[], None]]:
    """Restore parameters and state of optimizers; yields a function that resets parameters."""
    parameters = [
        (p, p.detach().clone()) for optimizer in optimizers for p in parameters_of(optimizer)
    ]
    states = [
        {
            p: {key: _copy(value) for key, value in state.items()}
            for p, state in optimizer.state.items()
        }
        for optimizer in optimizers
    ]

    @torch.no_grad()
    def weights_back() -> None:
        for parameter, value in parameters:
            parameter.copy_(value)

    try:
        yield weights_back
    finally:
        weights_back()
        for optimizer, before in zip(optimizers, states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(before)


@contextmanager
def _unchanged(selection: Selection) -> Iterator[None]:
    """Restore the state of a rule that may follow optimizer steps, as `GradientChange` does."""
    before = selection.state_dict()
    try:
        yield
    finally:
        selection.load_state_dict(before)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _phase(dense: Sequence[float], sparse: Sequence[float]) -> PhaseTiming:
    return PhaseTiming(*spread_of(dense), *spread_of(sparse))

"""The choice between two ways to compute a weight gradient: all rows, or only the active rows.

Computing only the active rows (slicing) saves part of one product, but needs a gather and, in a
convolution, a second call. The gain depends on the shape, the layout, the share of frozen rows, the
machine and the library: on one x86 thread the time of a layer's backward changed by factors between
0.5 and 1.6. It is therefore measured on the tensors of the run, once for each kind of work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from snello.timing import take_turns, timed

DispatchMode = Literal["measured", "fixed"]

TURNS = 3
"""Timed calls of each way, in turns after one warm-up; the smallest time counts."""

MARGIN = 0.97
"""Slicing is chosen only if it takes at most this share of the dense time."""

QUEUEING_MS = 0.15
"""Milliseconds that slicing has to save on an accelerator: its Python code costs the processor that
queues the kernels about as much. On an H200, where layers were timed one by one without it, the backward of
ResNet-18 (256 images, half of the neurons frozen) took 1.17 times as long as the plain one."""

BUCKETS = 8
"""Numbers of active rows are rounded up to eighths of the layer, which share a decision."""

BLOCK = 16
"""CPU kernels work on blocks of 16 channels; the fixed rule counts active rows in whole blocks."""

FIXED_SHARE = 0.76
"""The fixed rule slices when at most this share of the blocks is active. Measured on one x86
thread, whole backward of one convolution over the plain one: 0.76 to 0.97 at 75 % active, 0.64 to
0.88 at 50 %, 0.51 to 0.80 at 10 %, for 32 channels and more; a layer of 16 channels is one block,
and gave 1.0 to 1.15 always."""

FIXED_FAN_IN = 128
"""Incoming weights below which, in channels_last, at most a quarter of the blocks may be active.
The gather copies single entries there and only pays off with a large product: with 64 incoming
weights (1x1), slicing took 1.07 times as long at 50 % active, 0.9 times at 75 %."""


@dataclass(frozen=True)
class Work:
    """The properties of a layer's backward that decide how long it takes.

    Attributes:
        kind: name of the operation and its geometry.
        weight: shape of the weight.
        positions: binary magnitude of the number of output positions, over the whole batch.
        channels_last: layout of the data.
        needs_input: true if the gradient of the input is wanted as well.
        dtype: of the operands.
        device: where it runs.
        active: active rows in eighths of the layer, rounded up.
        threads: intra-op threads of the CPU.
    """

    kind: tuple[Any, ...]
    weight: tuple[int, ...]
    positions: int
    channels_last: bool
    needs_input: bool
    dtype: torch.dtype
    device: str
    active: int
    threads: int


@dataclass(frozen=True)
class Decision:
    """The way chosen for one kind of work.

    Attributes:
        sliced: true if the active rows are computed alone.
        dense_ms: time of the whole backward of the layer, in milliseconds; None if it was not
            measured.
        sliced_ms: the same with the active rows computed alone.
    """

    sliced: bool
    dense_ms: float | None = None
    sliced_ms: float | None = None


Gradients = tuple[Tensor | None, ...]


class Dispatch:
    """Decisions for or against slicing, one per kind of work, kept for the run.

    Args:
        mode: "measured" times both ways once per kind of work. "fixed" follows a rule derived from
            measurements on one machine, which slices on CPUs alone: two runs with the same seed
            then give the same bits, which measured decisions do not guarantee. While
            `torch.are_deterministic_algorithms_enabled()`, the rule is used in either mode.
    """

    def __init__(self, mode: DispatchMode = "measured") -> None:
        self.mode = mode
        self.decisions: dict[Work, Decision] = {}

    def decision(self, work: Work) -> Decision | None:
        """The decision for this kind of work; None if it still has to be measured."""
        if self.mode == "fixed" or torch.are_deterministic_algorithms_enabled():
            return Decision(rule(work))
        return self.decisions.get(work)

    def measure(
        self, work: Work, dense: Callable[[], Gradients], sliced: Callable[[], Gradients]
    ) -> Gradients:
        """Time both ways, remember the faster one, and return the gradients."""
        ways = {"dense": dense, "sliced": sliced}
        found: dict[str, Gradients] = {}

        def seconds(way: str) -> float:
            found[way], elapsed = timed(ways[way], work.device)
            return elapsed

        with torch.no_grad():
            times = take_turns([*ways], seconds, TURNS, warmup=1)
        dense_ms, sliced_ms = (min(times[way]) * 1e3 for way in ways)
        decision = Decision(pays(work, dense_ms, sliced_ms), dense_ms, sliced_ms)
        self.decisions[work] = decision
        return found["sliced" if decision.sliced else "dense"]


def pays(work: Work, dense_ms: float, sliced_ms: float) -> bool:
    """Return true if slicing is worth it by the two times of a layer's backward, measured alone."""
    queueing_ms = 0.0 if _on_cpu(work) else QUEUEING_MS
    return sliced_ms + queueing_ms < MARGIN * dense_ms


def _on_cpu(work: Work) -> bool:
    return torch.device(work.device).type == "cpu"


def can_measure() -> bool:
    """Return true unless derivatives are being recorded, counted or traced, or a step is captured.

    A measurement waits for the device, which ends the capture of a CUDA graph with an error.
    """
    if torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack():
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())  # type: ignore[no-untyped-call]


def rule(work: Work) -> bool:
    """Return true if the fixed rule, made of the constants above, slices: on a CPU alone."""
    if not _on_cpu(work):
        return False
    rows = work.weight[0]
    # Rounded up: kernels compute whole blocks.
    blocks = -(-rows // BLOCK)
    active = -(-work.active * rows // (BUCKETS * BLOCK))
    narrow = work.channels_last and torch.Size(work.weight[1:]).numel() < FIXED_FAN_IN
    return active <= (blocks // 4 if narrow else FIXED_SHARE * blocks)

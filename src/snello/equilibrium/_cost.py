"""The cost of a training step with and without freezing, in one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snello.graph import Example

from ._flops import StepFlops, step_flops
from ._memory import StepMemory, step_memory
from ._neq import SelectiveUpdate
from ._records import EquilibriumStep
from ._timing import StepTiming, time_step


@dataclass(frozen=True)
class UpdateCost:
    """Cost of one training step with the neurons frozen at present, and of the plain step.

    Attributes:
        status: the frozen share of each layer, and the FLOPs in the paper's convention, per sample.
        dense_flops: FLOPs that the plain step executes, for the whole batch.
        flops: FLOPs that the step with frozen neurons executes.
        dense_memory: memory of the plain forward and backward pass.
        memory: memory of both passes with frozen neurons.
        timing: measured times, both steps in turns.
    """

    status: EquilibriumStep
    dense_flops: StepFlops
    flops: StepFlops
    dense_memory: StepMemory
    memory: StepMemory
    timing: StepTiming

    @property
    def ratios(self) -> dict[str, float]:
        """Cost relative to the plain step by name: three counts, two times and the memory."""
        return {
            "backward FLOPs, paper's convention": self.status.flops / self.status.dense_flops,
            "backward FLOPs executed": self.flops.backward / self.dense_flops.backward,
            "step FLOPs executed": self.flops.total / self.dense_flops.total,
            "backward time": self.timing.backward.ratio,
            "step time": self.timing.step.ratio,
            "saved activations": self.memory.saved_bytes / max(self.dense_memory.saved_bytes, 1),
        }


def measure_cost(
    neq: SelectiveUpdate,
    inputs: Example,
    targets: Any,
    loss_fn: Callable[[Any, Any], Tensor],
    repeats: int = 20,
) -> UpdateCost:
    """Count FLOPs and memory of a step and measure its time, plain and with neurons frozen.

    The arguments are those of [`time_step`][snello.equilibrium.time_step]; as there, everything is
    restored afterwards.

    Raises:
        ConfigError: for fewer than one repeat, or a selective update without an optimizer.
        ModelError: if the loss requires no gradient.
    """

    def loss(output: Any) -> Tensor:
        return loss_fn(output, targets)

    def counted() -> tuple[StepFlops, StepMemory]:
        return step_flops(neq.model, inputs, loss), step_memory(neq.model, inputs, loss)

    timing = time_step(neq, inputs, targets, loss_fn, repeats)
    with neq.freezer.dense():
        dense_flops, dense_memory = counted()
    flops, memory = counted()
    return UpdateCost(neq.status(), dense_flops, flops, dense_memory, memory, timing)

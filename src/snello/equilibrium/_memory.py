"""Memory that the forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snello.graph import Example, Inputs
from snello.timing import synchronise

from ._flops import loss_of, undisturbed


@dataclass(frozen=True)
class StepMemory:
    """Memory of one forward and backward pass.

    Attributes:
        saved_bytes: bytes that autograd keeps between the two passes, without parameters, buffers
            and inputs: the saved activations, each storage once.
        peak_bytes: most bytes allocated on the device during both passes, gradients included,
            beyond those allocated before. None on a device that does not count them (the CPU).
    """

    saved_bytes: int
    peak_bytes: int | None


def step_memory(
    model: nn.Module,
    inputs: Example,
    loss_fn: Callable[[Any], Tensor] | None = None,
) -> StepMemory:
    """Measure the memory of a forward and a backward pass with the neurons frozen now.

    A layer without active neurons saves no input; any other saves all of it. The model runs in its
    present mode; its gradients, buffers and the random generators are restored.

    Args:
        model: the model to run.
        inputs: one batch: a tensor, or the model's arguments as a tuple or by name.
        loss_fn: the loss of the model's output; by default the sum of all its floating-point
            tensors.

    Raises:
        ConfigError: without `loss_fn`, if the output holds no floating-point tensor.
        ModelError: if nothing in the output requires a gradient.
    """
    args = Inputs.of(inputs).tensors()
    owned = {_storage(t) for t in (*model.parameters(), *model.buffers(), *args)}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        # By storage, so that views of one tensor count once.
        if _storage(tensor) not in owned:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    device = args[0].device
    with undisturbed(model):
        before = _start_counting(device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = loss_of(model, inputs, loss_fn)
        loss.backward()  # type: ignore[no-untyped-call]
        peak = None if before is None else torch.cuda.max_memory_allocated(device) - before
    return StepMemory(sum(saved.values()), peak)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _start_counting(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)

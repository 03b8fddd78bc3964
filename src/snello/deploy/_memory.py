"""Peak memory of a forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from snello.errors import ModelError
from snello.graph import Example, evaluation, positional

from ._verify import shapes

Method = Literal["tensors", "process"]


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of one forward pass, and the method of measurement.

    Results of the two methods are not comparable with each other.

    Attributes:
        bytes: the peak in bytes.
        method: `"tensors"`: parameters, buffers, inputs, and the largest sum of simultaneously
            live outputs of torch's operators. It excludes temporary memory inside an operator and
            is equal on all machines. `"process"`: growth of the resident set of a separate
            process that loads the file and runs it three times, including the runtime's buffers.
    """

    bytes: int
    method: Method


def model_peak_memory(model: nn.Module, example_inputs: Example) -> PeakMemory:
    """Count the memory of simultaneously live tensors in one forward pass.

    Args:
        model: any module; its mode is restored.
        example_inputs: positional inputs of the batch size of interest.

    Raises:
        ModelError: if the model does not run on the inputs.
    """
    called, inputs = positional(model, example_inputs)
    with evaluation(model):
        return peak_memory_of(called, [*model.parameters(), *model.buffers()], inputs)


def peak_memory_of(
    call: Callable[..., object], state: Iterable[Tensor], inputs: tuple[Tensor, ...]
) -> PeakMemory:
    """Count the memory as `model_peak_memory`, for a callable with a given state.

    Args:
        call: callable that uses torch operators.
        state: its parameters and buffers.
        inputs: its inputs.

    Raises:
        ModelError: if the callable does not run on the inputs.
    """
    resident = _storages([*state, *inputs])
    try:
        with torch.no_grad(), _Live(resident) as live:
            call(*inputs)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(
            f"{type(call).__name__} does not run on inputs of shape {shapes(inputs)}: {error}"
        ) from error
    return PeakMemory(sum(resident.values()) + live.peak, "tensors")


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Track the storages that operators return, until they are freed."""

    def __init__(self, known: Mapping[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known = known
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return outputs

    def _follow(self, storage: Any) -> None:
        if storage in self._seen or storage.data_ptr() in self._known:
            return
        size = storage.nbytes()
        self._seen.add(storage)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._now -= size


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of the storages of the tensors, shared ones once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}

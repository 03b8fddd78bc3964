"""The outputs of a model and of its twin, the captured graph: run alike, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from .decisions import discrete
from .inputs import Inputs
from .modes import evaluation

TOLERANCE = 1e-3
"""Largest difference between equal outputs, as a part of the largest absolute value of the tensor:
rounding of the same operations, perhaps in another order.
"""


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Tensors among the outputs of a model in evaluation mode. As a model may write on its inputs,
    it is given copies.
    """
    with evaluation(model), same_numbers():
        return tensors_of(inputs.map(torch.clone).call(model))


@contextmanager
def same_numbers() -> Iterator[None]:
    """Seed the generators, so that each run inside such a block draws the same random numbers; no
    gradients are recorded. Afterwards the generators of the CPU and of CUDA are as they were.
    """
    # torch.manual_seed would queue a seed for devices that are not initialised yet.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        for generator in (
            torch.default_generator,
            *(torch.cuda.default_generators[i] for i in devices),
        ):
            generator.manual_seed(0)
        yield


def tensors_of(output: object) -> list[Tensor]:
    """Tensors in an output, in order. Those in other objects, such as caches, are left out."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in (parts_of(output) or {}).values() for tensor in tensors_of(part)]


def parts_of(output: object) -> dict[str, object] | None:
    """Items of a container by key, index or field name; None for anything else."""
    # Before dataclasses: a ModelOutput of transformers is both, and a plain dict in its twin.
    if isinstance(output, Mapping):
        return {repr(key): value for key, value in output.items()}
    if isinstance(output, (list, tuple)):
        return {str(index): value for index, value in enumerate(output)}
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return None


def differ(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Return True if two lists of tensors differ by more than rounding, or in number or shape."""
    pairs = zip(expected, found, strict=False)
    return len(expected) != len(found) or any(not _close(a, b) for a, b in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if discrete(a):
        return bool((a == b).all())
    finite = a[a.isfinite()]
    # Of the expected output alone; 1e-30 where it is zero or has no finite value.
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(a, b, rtol=0, atol=TOLERANCE * max(scale, 1e-30), equal_nan=True)

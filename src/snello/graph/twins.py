"""Comparison of a captured graph with the model that it was captured from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from .inputs import Inputs
from .modes import evaluation

TOLERANCE = 1e-3
"""Largest difference relative to the largest output. Rounding stays below it, also in float32."""


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Tensors among the outputs of a model, in evaluation mode, on copies of the inputs."""
    with evaluation(model), same_numbers():
        return tensors_of(inputs.map(torch.clone).call(model))


@contextmanager
def same_numbers() -> Iterator[None]:
    """Draw the same random numbers in every such block, without gradients.

    The state of the generator of the CPU is restored afterwards.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def tensors_of(output: object) -> list[Tensor]:
    """Tensors in an output, in order. Those in other objects, such as caches, are left out."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in (parts_of(output) or {}).values() for tensor in tensors_of(part)]


def parts_of(output: object) -> dict[str, object] | None:
    """Items of a container by key, index or field name; None for anything else."""
    if isinstance(output, Mapping):  # tracing makes a plain dict of every kind of mapping
        return {repr(key): value for key, value in output.items()}
    if isinstance(output, (list, tuple)):
        return {str(index): value for index, value in enumerate(output)}
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return None


def differ(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """True if two lists of tensors differ by more than rounding, or in number, shape or dtype."""
    pairs = zip(expected, found, strict=False)
    return len(expected) != len(found) or any(not _close(a, b) for a, b in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    finite = a[a.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(a, b, rtol=0, atol=TOLERANCE * max(scale, 1e-30), equal_nan=True)

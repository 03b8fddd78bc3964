"""Texts that tell networks and functions apart in the log of a search."""

from __future__ import annotations

import hashlib

from torch import nn


def name_of(function: object) -> str | None:
    """Name of an option that is a name or a function."""
    if function is None or isinstance(function, str):
        return function
    return getattr(function, "__qualname__", type(function).__qualname__)


def digest(model: nn.Module) -> str:
    """SHA-256 of all tensors, to tell networks apart."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().double().numpy().tobytes())
    return total.hexdigest()[:16]

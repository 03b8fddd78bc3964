"""Texts that tell networks and functions apart in the folders of searches."""

from __future__ import annotations

import hashlib

from torch import nn


def digest_of(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a model's `state_dict`, hexadecimal."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {getattr(value, 'shape', value)}".encode())
        if hasattr(value, "numel"):
            # As doubles, because NumPy has no bfloat16.
            found.update(value.detach().cpu().double().contiguous().numpy().tobytes())
    return found.hexdigest()


def name_of(function: object) -> str | None:
    """Name of an option that is a name or a function."""
    if function is None or isinstance(function, str):
        return function
    return getattr(function, "__qualname__", type(function).__qualname__)

"""Identities of networks, functions and settings in the folders of searches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from snello.errors import ConfigError


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


def plain(settings: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Settings as JSON gives them back.

    Args:
        settings: those that the results in a folder depend on.
        who: name of the function, for the message.

    Raises:
        ConfigError: if the attribute `settings` of one of the caller's functions is no plain value.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{who}: the attribute settings of fit or evaluate holds no plain values: {error}"
        ) from error
    return found

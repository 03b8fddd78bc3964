"""Keywords of earlier versions."""

from __future__ import annotations

from typing import Any

from snello.errors import ConfigError

NEW_SPELLING = {
    "twt": "amount=LossBound({})",
    "pwe": "schedule=Plateau({})",
    "tolerance": "schedule=Plateau(pwe, tolerance={})",
}
"""Keyword of an earlier version -> its present spelling."""


def refuse_renamed(given: dict[str, Any]) -> None:
    """Raise an error for unknown keywords.

    Raises:
        ConfigError: for a keyword of an earlier version, with its present spelling.
        TypeError: for any other keyword.
    """
    for name, value in given.items():
        if name in NEW_SPELLING:
            new = NEW_SPELLING[name].format(value)
            raise ConfigError(
                f"Pruner({name}={value}) is spelled {new} now; import it from snello.pruning"
            )
        raise TypeError(f"Pruner() got an unexpected keyword argument {name!r}")

"""Keywords of earlier versions."""

from __future__ import annotations

from typing import Any

from snello.errors import ConfigError

NEW_SPELLING = {
    "twt": "amount=LossBound({})",
    "pwe": "schedule=Plateau({})",
    "tolerance": "schedule=Plateau(pwe, tolerance={})",
}
"""Keywords of earlier versions -> how to say the same now."""


def refuse_renamed(given: dict[str, Any]) -> None:
    """Refuse keywords that are not known, old ones with their new spelling."""
    for name, value in given.items():
        if name in NEW_SPELLING:
            new = NEW_SPELLING[name].format(value)
            raise ConfigError(
                f"Pruner({name}={value}) is spelled {new} now; import it from snello.pruning"
            )
        raise TypeError(f"Pruner() got an unexpected keyword argument {name!r}")

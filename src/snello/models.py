"""Former place of models by name, now [`snello.store`][]; the papers' networks:
`snello.lab.models`.

Programs that import from here go on working, with a warning.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    for place in ("snello.store", "snello.lab.models"):
        module = importlib.import_module(place)
        if not name.startswith("_") and hasattr(module, name):
            warnings.warn(
                f"snello.models.{name} is {place}.{name} now", DeprecationWarning, stacklevel=2
            )
            return getattr(module, name)
    raise AttributeError(f"module 'snello.models' has no attribute {name!r}")

"""Names of a package that are imported when they are first used (PEP 562).

A package lists its names twice: as imports under `TYPE_CHECKING`, which type checkers and editors
read, and as a table from modules to names, which this module reads at run time.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def lazily(
    package: str, homes: Mapping[str, Collection[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package; its public modules are names as well.

    Args:
        package: its `__name__`.
        homes: module of the package -> names that are imported from it on first use.

    Returns:
        The two functions, to be assigned in the package.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in home_of:
            value = getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # From now on the name is found without this function.
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *home_of})

    return __getattr__, __dir__

"""Spaces of the hyper-parameters that `snello tune` searches where a recipe declares none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Around:
    """A logarithmic range around a recipe's own value.

    Attributes:
        factor: the range is from the value divided by it to the value times it.
    """

    factor: float

    def of(self, value: float) -> list[Any]:
        """The range, in the form of a recipe."""
        return [value / self.factor, value * self.factor, "log"]


_PRUNING: Mapping[str, Any] = {"twt": [0.01, 1.0, "log"], "pwe": [1, 10]}

SPACES: Mapping[str, Mapping[str, Any]] = {
    "lobster": {"lmbda": [1e-6, 1e-2, "log"], **_PRUNING},
    "serene": {"lmbda": [1e-6, 1e-2, "log"], **_PRUNING},
    "output": {"lmbda": [1e-6, 1e-2, "log"], **_PRUNING},
    "neq": {"eps": [1e-4, 1e-1, "log"], "mu": [0.0, 0.9]},
    "optimizer": {"lr": Around(10)},
}
"""Block of a recipe -> field -> range, as a recipe writes it: `[low, high]`, `[low, high, log]` or
`{choices: [a, b]}`; or relative to the recipe's value. A new space is a line here."""

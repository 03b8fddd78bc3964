"""The ways to train: names on the command line, what they mean, and which of them may be
combined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snello.errors import ConfigError, nearest

Pruning = Literal["lobster", "serene"]
Update = Literal["neq", "stochastic", "stochastic-star"]

METHODS = (
    "baseline", "lobster", "serene", "neq", "stochastic-0.2", "stochastic-0.5", "stochastic-star",
    "serene+neq",
)  # fmt: skip
"""The methods that recipes use; any share p makes a ``stochastic-p``, and ``+`` joins pruning to updating."""

JOURNEY_METHODS = ("baseline", "lobster", "serene", "neq")
"""What a recipe runs unless it says otherwise."""

_PRUNING: tuple[Pruning, ...] = ("lobster", "serene")


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Attributes:
        name: as it is written.
        pruning: the sensitivity that the network is pruned with, or None.
        update: the rule by which neurons skip their update, or None.
        share: the frozen share of ``stochastic``.
    """

    name: str
    pruning: Pruning | None = None
    update: Update | None = None
    share: float = 0.0


def method_of(name: str) -> Method:
    """Read the name of a method: ``"serene+neq"``, ``"stochastic-0.35"``.

    Raises:
        ConfigError: for a name that means nothing.
    """
    pruning: Pruning | None = None
    update: Update | None = None
    share = 0.0
    parts = [] if name == "baseline" else name.split("+")
    for part in parts:
        if pruning is None and (found := next((p for p in _PRUNING if p == part), None)):
            pruning = found
        elif update is None and (part == "neq" or part == "stochastic-star"):
            update = "neq" if part == "neq" else "stochastic-star"
        elif update is None and (given := _share(part)) is not None:
            update, share = "stochastic", given
        else:
            raise ConfigError(
                f"methods: a method must be one of {', '.join(METHODS)}, not {name!r}{nearest(name, METHODS)}; "
                "any share makes a stochastic-P, and '+' joins lobster or serene to one that updates less"
            )
    return Method(name, pruning, update, share)


def _share(part: str) -> float | None:
    """The P of ``stochastic-P``, in [0, 1]; None for anything else."""
    head, _, number = part.partition("-")
    try:
        share = float(number) if head == "stochastic" else -1.0
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None

"""Checks that the options of a pruner are of their kinds."""

from __future__ import annotations

from snello.errors import ConfigError

from ._limits import LayerLimits
from ._quality import QualityBound


def check_kinds(amount: object, schedule: object, limits: object, quality: object) -> None:
    """Refuse options of another kind, such as a number for an amount.

    Raises:
        ConfigError: naming the option, its value, and what it may be.
    """
    for name, value, fits, known in (
        ("amount", amount, hasattr(amount, "search"), "Ratio(0.5), LossBound() or Budget(...)"),
        ("schedule", schedule, hasattr(schedule, "reached"), "OneShot(), Cubic() or Plateau()"),
        ("limits", limits, isinstance(limits, LayerLimits), "LayerLimits(keep_at_least=0.2)"),
        (
            "quality", quality, quality is None or isinstance(quality, QualityBound),
            "QualityBound(accuracy, max_drop=0.01)",
        ),
    ):  # fmt: skip
        if not fits:
            raise ConfigError(f"Pruner: {name} is an object such as {known}, not {value!r}")

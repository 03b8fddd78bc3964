"""Checks that the options of a pruner are of their kinds."""

from __future__ import annotations

from snello.errors import ConfigError, is_whole

from ._limits import LayerLimits
from ._quality import QualityBound


def check_round_to(given: object) -> None:
    """Refuse a number that widths cannot be multiples of.

    Raises:
        ConfigError: with the number.
    """
    if not is_whole(given) or given < 1:
        raise ConfigError(f"round_to: must be a whole number, at least 1, not {given!r}")


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

"""Spaces as data: intervals and options, as a recipe writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from snello.errors import ConfigError, check_option, is_number, nearest

_FORM = (
    "write [low, high], [low, high, log] for a logarithmic scale, or {choices: [a, b]} for a list"
)


@dataclass(frozen=True)
class Interval:
    """The numbers between two ends, which belong to it.

    Attributes:
        name: dotted name of the setting.
        low, high: the ends, low < high.
        log: sample the logarithm uniformly, not the number.
        whole: whole numbers alone.
    """

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        where = f"tune: {self.name}: [{self.low:g}, {self.high:g}]"
        check_option(
            math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high,
            f"{where}: the first number must be smaller than the second",
        )
        check_option(
            not self.log or self.low > 0,
            f"{where}: a logarithmic scale needs numbers above 0; raise {self.low:g}, or leave out 'log'",
        )
        check_option(
            not self.whole or (self.low == int(self.low) and self.high == int(self.high)),
            f"{where}: the setting is a whole number, and so are the ends of its range",
        )

    def suggest(self, trial: optuna.trial.BaseTrial) -> float:
        """The trial's value."""
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Return True if a value belongs to the interval."""
        if not is_number(value):
            return False
        return self.low <= value <= self.high and (not self.whole or value == int(value))

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that must be valid for all of them to be: the ends."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


@dataclass(frozen=True)
class Options:
    """Some values without an order.

    Attributes:
        name: dotted name of the setting.
        values: texts, numbers, true, false or None; at least two.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        plain = all(isinstance(value, (str, int, float, bool, type(None))) for value in self.values)
        check_option(
            plain and len(set(self.values)) == len(self.values) >= 2,
            f"tune: {self.name}: choices must be two or more different texts or numbers, not "
            f"{list(self.values)!r}",
        )

    def suggest(self, trial: optuna.trial.BaseTrial) -> Any:
        """The trial's value."""
        return trial.suggest_categorical(self.name, self.values)

    def holds(self, value: Any) -> bool:
        """Return True if a value is one of the options."""
        return value in self.values

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that must be valid for all of them to be: all."""
        return self.values


Space = Sequence[Interval | Options]
"""The settings of a study, each with its values."""


def dimension(name: str, given: Any, *, whole: bool | None = None) -> Interval | Options:
    """The values of one setting, from the form in which a recipe gives them.

    >>> dimension("lobster.lmbda", [1e-5, 1e-3, "log"]).log
    True

    Args:
        name: dotted name of the setting.
        given: `[low, high]`, `[low, high, "log"]` or `{"choices": [a, b]}`.
        whole: whether the setting is a whole number, or another one; None if that is unknown: then a
            range is of whole numbers if both ends are.

    Raises:
        ConfigError: for any other form, and for an empty range.
    """
    if isinstance(given, Mapping):
        choices = _choices(name, given)
        return Options(name, tuple(choices if whole is None else map(_as_number, choices)))
    if not isinstance(given, (list, tuple)) or len(given) not in (2, 3):
        raise ConfigError(f"tune: {name}: {given!r} is no range: {_FORM}")
    low, high = (_number(name, end) for end in given[:2])
    if len(given) == 3 and given[2] != "log":
        hint = nearest(str(given[2]), ["log"])
        raise ConfigError(f"tune: {name}: {given[2]!r} is no scale{hint}: {_FORM}")
    if whole is None:
        whole = isinstance(low, int) and isinstance(high, int)
    return Interval(name, low, high, len(given) == 3, whole)


def _choices(name: str, given: Mapping[str, Any]) -> Sequence[Any]:
    if set(given) != {"choices"} or not isinstance(given["choices"], (list, tuple)):
        inner = f"; a nested setting is written {name}.{next(iter(given), 'name')}"
        raise ConfigError(f"tune: {name}: {dict(given)!r} is no list of choices: {_FORM}{inner}")
    found: Sequence[Any] = given["choices"]
    return found


def _as_number(choice: Any) -> Any:
    """A choice of numbers. YAML 1.1 reads 1e-5, which has no point, as a text."""
    try:
        return float(choice) if isinstance(choice, str) else choice
    except ValueError:
        return choice  # refused with the option's type


def _number(name: str, end: Any) -> float:
    """An end of a range."""
    if is_number(end):
        return end
    try:
        if isinstance(end, str):
            return float(end)
        raise TypeError(type(end).__name__)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"tune: {name}: {end!r} is no number, which the end of a range must be: {_FORM}"
        ) from error

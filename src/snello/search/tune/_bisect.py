"""Bisection of a setting whose effect is monotone, to a wished value of the effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from snello.errors import check_option


@dataclass(frozen=True)
class Bisection:
    """The measurements of a bisection.

    Attributes:
        setting: the measured setting whose effect is nearest to the target.
        effect: its effect.
        reached: whether the effect is within the tolerance.
        tried: settings and their effects, in the order of the measurements.
    """

    setting: float
    effect: float
    reached: bool
    tried: tuple[tuple[float, float], ...]


def bisect(
    measure: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    *,
    tolerance: float,
    log: bool = False,
    steps: int = 10,
) -> Bisection:
    """Find the setting whose effect is a wished one.

    The effect may rise or fall with the setting. Small steps back, as noise makes them, cost
    accuracy only: the nearest measurement is returned.

    >>> found = bisect(lambda x: -x * x, -2.0, 0.0, 2.0, tolerance=0.001, steps=20)
    >>> abs(found.setting**2 - 2) <= 0.001
    True

    Args:
        measure: setting -> effect.
        target: wished effect.
        low: lower end of the range.
        high: upper end.
        tolerance: largest difference from the target at which the search ends.
        log: halve the logarithm of the range; needs low > 0.
        steps: largest number of measurements, at least 2: the first are at the ends.

    Raises:
        ConfigError: for an empty or infinite range, a target that is no finite number, a negative
            tolerance, or fewer than two steps.
    """
    finite = math.isfinite(low) and math.isfinite(high)
    check_option(
        finite and low < high and (not log or low > 0), f"no range to bisect: [{low}, {high}]"
    )
    check_option(math.isfinite(target), f"no target of a bisection: {target}")
    check_option(tolerance >= 0, f"a tolerance is at least 0, not {tolerance}")
    check_option(steps >= 2, f"bisection needs at least 2 steps, not {steps}")
    tried: list[tuple[float, float]] = []

    def effect_of(setting: float) -> float:
        tried.append((setting, measure(setting)))
        return tried[-1][1]

    at_low, at_high = effect_of(low), effect_of(high)
    rises = at_high > at_low
    inside = min(at_low, at_high) < target < max(at_low, at_high)
    while inside and len(tried) < steps and _nearest(tried, target)[1] > tolerance:
        middle = math.sqrt(low * high) if log else (low + high) / 2
        if (effect_of(middle) < target) == rises:
            low = middle
        else:
            high = middle
    (setting, effect), distance = _nearest(tried, target)
    return Bisection(setting, effect, distance <= tolerance, tuple(tried))


def _nearest(tried: list[tuple[float, float]], target: float) -> tuple[tuple[float, float], float]:
    pair = min(tried, key=lambda one: abs(one[1] - target))
    return pair, abs(pair[1] - target)

"""Checks of the arguments of `prune`, before anything is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from snello.errors import ConfigError, is_number, is_whole
from snello.graph import Example
from snello.pruning import LayerLimits
from snello.pruning.channels import Keep


def check_arguments(
    amount: object,
    steps: object,
    max_drop: float | None,
    limits: object,
    exclude: object,
    calibration: object,
    functions: dict[str, Callable[..., Any] | None],
) -> None:
    """Refuse wrong arguments of `prune`.

    Args:
        amount, steps, max_drop, limits, exclude, calibration: as given.
        functions: name -> function or None: `fit`, `evaluate`, `on_step`.

    Raises:
        ConfigError: naming the argument and its value.
    """
    if not isinstance(amount, Keep):
        raise ConfigError(
            f"prune: amount is the share to keep, such as Keep(macs=0.5), not {amount!r}"
        )
    if not is_whole(steps) or steps < 1:
        raise ConfigError(f"prune: steps is a number of steps, at least 1, not {steps!r}")
    if limits is not None and not isinstance(limits, LayerLimits):
        raise ConfigError(
            f"prune: limits is a LayerLimits, such as LayerLimits(keep_at_least=0.2), not {limits!r}"
        )
    names = [exclude] if isinstance(exclude, str) else exclude
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"prune: exclude is a list of names of dimensions or modules, not {exclude!r}"
        )
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ConfigError(f"prune: {name} is a function of a network, not {function!r}")
    _check_drop(max_drop, functions.get("evaluate"))
    if not isinstance(calibration, Iterable) or isinstance(calibration, (str, Tensor)):
        what = "a tensor; put it into a list" if isinstance(calibration, Tensor) else calibration
        raise ConfigError(f"prune: calibration is a list of batches of inputs, not {what}")


def _check_drop(max_drop: object, evaluate: object) -> None:
    if max_drop is None:
        return
    if evaluate is None:
        raise ConfigError(
            "prune: max_drop needs evaluate, a function from a network to its quality"
        )
    if not is_number(max_drop) or not max_drop >= 0:
        raise ConfigError(f"prune: max_drop is a drop of the quality, at least 0, not {max_drop!r}")


def check_recovery(
    batches: Sequence[Example],
    reconstruction: bool | str,
    measured: bool,
    branches: bool,
    normalise: object,
) -> None:
    """Refuse options that need calibration inputs or one another, or exclude one another.

    Raises:
        ConfigError: naming what is missing or left over.
    """
    if not isinstance(reconstruction, bool) and reconstruction != "biases":
        raise ConfigError(
            f"prune: reconstruction is True, False or 'biases', not {reconstruction!r}"
        )
    if branches and not measured:
        raise ConfigError(
            "prune: branches have no score: give measured=True, too, and calibration, batches of inputs"
        )
    if measured and normalise != "auto":
        raise ConfigError(
            "prune: measured=True compares changes of the outputs, not scores: leave out normalise"
        )
    for name, given in (("reconstruction", reconstruction), ("measured", measured)):
        if given and not batches:
            raise ConfigError(f"prune: {name} needs calibration, batches of inputs")


def quality_of(value: Any) -> float:
    """The quality that an `evaluate` returned, as a number.

    Raises:
        ConfigError: for anything but a number or a tensor of one.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "prune: evaluate returns the quality of a network, one number, higher is better, not "
            f"{value!r}"
        ) from error

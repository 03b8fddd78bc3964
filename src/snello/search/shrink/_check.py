"""Checks of the arguments, before the first measurement."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from snello.deploy.operations import DeviceProfile
from snello.errors import ConfigError, is_number, is_whole, nearest
from snello.graph import Example, Inputs, evaluation
from snello.graph.coupled import Coupling

LEVERS = ("channels", "weights", "int8", "nnc")
"""Levers that are allowed by default."""

MORE_LEVERS = ("branches",)
"""Levers that change the class of the network."""

COSTS = {"latency": "ms", "macs": "MACs", "bytes": "bytes", "memory": "bytes"}
"""Cost -> its unit."""

Lever = Literal["channels", "weights", "int8", "nnc", "branches"]


def check_options(
    max_drop: object, minimise: object, allow: object, counts: Mapping[str, object]
) -> None:
    """Check numbers and names.

    Raises:
        ConfigError: for a value of another type, out of range, or an unknown name.
    """
    if not (is_number(max_drop) and 0 <= max_drop < math.inf):
        raise ConfigError(
            f"shrink: max_drop={max_drop!r} must be a drop of the quality: a finite float, at least 0"
        )
    if not callable(minimise) and (not isinstance(minimise, str) or minimise not in COSTS):
        raise ConfigError(
            f"shrink: minimise={minimise!r}{nearest(str(minimise), COSTS)}; choose one of {', '.join(COSTS)}, "
            "or a function from a network to its cost"
        )  # fmt: skip
    names = list(allow) if isinstance(allow, Collection) and not isinstance(allow, str) else []
    levers = (*LEVERS, *MORE_LEVERS)
    odd = [name for name in names if name not in levers]
    if odd or not names:
        what = ", ".join(map(repr, odd)) or repr(allow)
        raise ConfigError(f"shrink: allow={what}; choose some of {', '.join(levers)}")
    useful = _levers_for(minimise, names)
    if not useful & set(names):
        raise ConfigError(
            f"shrink: allow={', '.join(names)} lowers no {minimise if isinstance(minimise, str) else 'cost'}: "
            f"add one of {', '.join(name for name in levers if name in useful)}"
        )
    for name, value in counts.items():
        if value is not None and not (is_whole(value) and value >= 1):
            raise ConfigError(f"shrink: {name}={value!r} must be a whole number, at least 1")


def _levers_for(minimise: object, allowed: Collection[str]) -> set[str]:
    """The levers that can lower a cost."""
    found = {"channels", "branches"}
    if minimise in ("latency", "memory", "bytes"):
        found.add("int8")
    if minimise == "bytes":
        found.add("nnc")
        if "nnc" in allowed:  # in float32, a weight of zero takes as many bytes as another
            found.add("weights")
    return found


def check_profile(profile: DeviceProfile, precisions: Collection[Any], threads: int) -> None:
    """Check that a profile predicts a latency in each precision.

    Raises:
        ConfigError: without whole networks in a precision, whose latency would lack its offset
            beside that of another; if their latency does not grow with the times of their
            operations; and for another number of threads.
    """
    if threads not in (1, profile.threads):
        raise ConfigError(
            f"shrink: threads={threads}, and the profile was measured with {profile.threads}: leave it out"
        )
    for precision in precisions:
        fit = profile.fit(precision)
        if not fit.runs or fit.slope <= 0:
            why = "do not get slower with their operations" if fit.runs else "are missing"
            less = ", or leave int8 out of the levers" if precision == "int8" else ""
            raise ConfigError(
                f"shrink: the profile of {profile.label} predicts no latency in {precision}, since its whole "
                f"networks in {precision} {why}: run bench.py --profile again, in a kit with them{less}"
            )


def check_functions(needed: Mapping[str, object], optional: Mapping[str, object]) -> None:
    """Check that functions can be called.

    Raises:
        ConfigError: for anything else.
    """
    given = {**needed, **{name: value for name, value in optional.items() if value is not None}}
    for name, value in given.items():
        if not callable(value):
            raise ConfigError(f"shrink: {name}={value!r} is no function of a network")


def check_names(
    exclude: Collection[str], coupling: Coupling, branches: Collection[str] = ()
) -> None:
    """Check names of dimensions and branches.

    Raises:
        ConfigError: for a name that no dimension has, which would exclude nothing.
    """
    names = [*(dimension.name for dimension in coupling.dimensions), *branches]
    if isinstance(exclude, str) or not isinstance(exclude, Collection):
        raise ConfigError(f"shrink: exclude={exclude!r}; give a list of names of dimensions")
    for name in exclude:
        if name not in names:
            raise ConfigError(
                f"shrink: exclude: there is no dimension {name!r}{nearest(str(name), names)}; "
                f"there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            )


def batches_of(calibration: object, model: nn.Module) -> list[Example]:
    """The calibration inputs, read once.

    Raises:
        ConfigError: for a single tensor, a batch without samples, or one that the model does not
            take, such as a pair of inputs and labels.
    """
    if isinstance(calibration, (Tensor, Mapping, str)) or not isinstance(calibration, Iterable):
        raise ConfigError(
            f"shrink: calibration is a {type(calibration).__name__}; give a list of batches of inputs: "
            "[images[:256]]"
        )  # fmt: skip
    batches = list(calibration)
    for batch in batches:
        inputs = Inputs.of(batch)
        if any(not x.dim() or not len(x) for x in inputs.tensors()):
            raise ConfigError(
                f"shrink: a batch of calibration of shapes {inputs.shapes} has no samples"
            )
    for batch in batches[:1]:
        try:
            with evaluation(model):
                Inputs.of(batch).map(lambda x: x.clone()).call(model)
        except Exception as error:  # the model's own code may raise anything
            raise ConfigError(
                f"shrink: the model does not run on the first batch of calibration, of shapes "
                f"{', '.join(map(str, Inputs.of(batch).shapes))}: {error}; it holds inputs without labels, as a "
                "tensor, a tuple of arguments or a mapping of keywords: [x for x, _ in loader]"
            ) from error  # fmt: skip
    return batches

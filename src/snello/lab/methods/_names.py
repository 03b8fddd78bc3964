"""Parser for method names: `serene`, `stochastic-0.2` (with a share), `serene+neq`."""

from __future__ import annotations

from dataclasses import dataclass

from snello.errors import ConfigError, nearest

from ._table import METHOD_SPECS, Kind, MethodSpec


def _named(kind: Kind) -> tuple[str, ...]:
    """Names of the methods of one kind; a method with a share is listed with two example shares."""
    names: list[str] = []
    for spec in METHOD_SPECS.values():
        if spec.kind == kind:
            shares = ("-0.2", "-0.5") if spec.takes_share else ("",)
            names += [f"{spec.name}{share}" for share in shares]
    return tuple(names)


METHODS = (
    *_named("baseline"), *_named("sensitivity"), *_named("selection"), "serene+neq",
)  # fmt: skip
"""Method names. `stochastic-P` accepts any share P in [0, 1]; `+` joins a sensitivity to a
selection."""

JOURNEY_METHODS = ("baseline", "lobster", "serene", "neq")
"""Methods that a recipe runs by default."""


@dataclass(frozen=True)
class Method:
    """A parsed method name.

    Attributes:
        name: the name as the user wrote it.
        sensitivity: the method that decides the decay and the pruning, or None.
        selection: the method that decides which neurons skip their update, or None.
        share: frozen share of neurons in `stochastic-P`, in [0, 1].
    """

    name: str
    sensitivity: MethodSpec | None = None
    selection: MethodSpec | None = None
    share: float = 0.0

    @property
    def block(self) -> str | None:
        """Recipe block that holds the sensitivity's options; None for a method without one."""
        return self.sensitivity.uses if self.sensitivity else None

    @property
    def uses(self) -> frozenset[str]:
        """Recipe blocks that hold the options of the method."""
        return frozenset(spec.uses for spec in (self.sensitivity, self.selection) if spec)


def method_of(name: str) -> Method:
    """Parse the name of a method: `"serene+neq"`, `"stochastic-0.35"`.

    Raises:
        ConfigError: for an unknown name; the message suggests the nearest valid one.
    """
    found: dict[str, MethodSpec] = {}
    share = 0.0
    for part in [] if name == "baseline" else name.split("+"):
        spec, given = _part(part)
        if spec is None or spec.kind == "baseline" or spec.kind in found:
            sensitivities = " or ".join(_named("sensitivity"))
            raise ConfigError(
                f"methods: a method must be one of {', '.join(METHODS)}, not {name!r}"
                f"{nearest(name, METHODS)}; stochastic-P accepts any share P in [0, 1], and '+' "
                f"joins {sensitivities} to a method that skips updates"
            )
        found[spec.kind] = spec
        share = share if given is None else given
    return Method(name, found.get("sensitivity"), found.get("selection"), share)


def _part(part: str) -> tuple[MethodSpec | None, float | None]:
    """Parse one part of a name into a method and its share; None where the part has none."""
    spec = METHOD_SPECS.get(part)
    if spec is not None and not spec.takes_share:
        return spec, None
    head, _, number = part.partition("-")
    spec = METHOD_SPECS.get(head)
    try:
        share = float(number)
    except ValueError:
        return None, None
    return (spec, share) if spec and spec.takes_share and 0 <= share <= 1 else (None, None)


def label_of(name: str, baseline: str = METHOD_SPECS["baseline"].label) -> str:
    """The label of a method in tables and plots.

    Args:
        name: method name, such as `"serene+neq"` or `"stochastic-0.2"`.
        baseline: label to use for the baseline.

    Raises:
        ConfigError: for an unknown name.
    """
    method = method_of(name)
    labels = [
        f"{spec.label} {method.share:g}" if spec.takes_share else spec.label
        for spec in (method.sensitivity, method.selection)
        if spec is not None
    ]
    return " + ".join(labels) or baseline

"""Names of methods: one of the table, one with a share, or a sensitivity joined to a selection."""

from __future__ import annotations

from dataclasses import dataclass

from snello.errors import ConfigError, nearest

from ._table import METHOD_SPECS, Kind, MethodSpec


def _named(kind: Kind) -> tuple[str, ...]:
    """Names of the methods of one kind; two examples of a name that takes a share."""
    names: list[str] = []
    for spec in METHOD_SPECS.values():
        if spec.kind == kind:
            shares = ("-0.2", "-0.5") if spec.takes_share else ("",)
            names += [f"{spec.name}{share}" for share in shares]
    return tuple(names)


METHODS = (
    *_named("baseline"), *_named("sensitivity"), *_named("selection"), "serene+neq",
)  # fmt: skip
"""Names of methods; any share P makes a ``stochastic-P``, ``+`` joins a sensitivity to a selection."""

JOURNEY_METHODS = ("baseline", "lobster", "serene", "neq")
"""Methods that a recipe runs by default."""


@dataclass(frozen=True)
class Method:
    """A name that was read.

    Attributes:
        name: as it is written.
        sensitivity: the method that the network is pruned with, or None.
        selection: the method by which neurons skip their update, or None.
        share: the frozen share of ``stochastic-P``.
    """

    name: str
    sensitivity: MethodSpec | None = None
    selection: MethodSpec | None = None
    share: float = 0.0

    @property
    def block(self) -> str | None:
        """Block of a recipe with the options of the sensitivity; None without one."""
        return self.sensitivity.uses if self.sensitivity else None

    @property
    def uses(self) -> frozenset[str]:
        """Blocks of a recipe that the method reads."""
        return frozenset(spec.uses for spec in (self.sensitivity, self.selection) if spec)


def method_of(name: str) -> Method:
    """Read the name of a method: ``"serene+neq"``, ``"stochastic-0.35"``.

    Raises:
        ConfigError: for an unknown name, with the nearest one.
    """
    found: dict[str, MethodSpec] = {}
    share = 0.0
    for part in [] if name == "baseline" else name.split("+"):
        spec, given = _part(part)
        if spec is None or spec.kind == "baseline" or spec.kind in found:
            sensitivities = " or ".join(_named("sensitivity"))
            raise ConfigError(
                f"methods: a method must be one of {', '.join(METHODS)}, not {name!r}"
                f"{nearest(name, METHODS)}; any share makes a stochastic-P, and '+' joins "
                f"{sensitivities} to one that updates less"
            )
        found[spec.kind] = spec
        share = share if given is None else given
    return Method(name, found.get("sensitivity"), found.get("selection"), share)


def _part(part: str) -> tuple[MethodSpec | None, float | None]:
    """The method and the share that a part of a name stands for; None for none."""
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
        name: ``"serene+neq"``, ``"stochastic-0.2"``.
        baseline: label of the baseline.

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

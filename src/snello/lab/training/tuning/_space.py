"""The space of a recipe: what it declares, or the defaults of its method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from snello.errors import ConfigError, SnelloError, check_option
from snello.lab.datasets import Splits
from snello.lab.methods import METHOD_SPECS, SPACES, Around, method_of
from snello.lab.recipes import Recipe, check_option_names, value_of
from snello.lab.training._fit import validate
from snello.search.tune import Interval, Space, dimension

ARGUMENTS = "model.arguments"
_LEARNING = {"data.batch_size", "data.augment"}
_PARTS = ("optimizer.", f"{ARGUMENTS}.", "accumulate", "ema", "precision")
"""Options that change a training, with those of the method's blocks."""


_PLAIN = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null",
}  # fmt: skip


def space_of(recipe: Recipe, method: str, declared: Mapping[str, Any] | None = None) -> Space:
    """The settings to tune for a method, checked.

    Args:
        recipe: it must take the ends of each range.
        method: name of the method; ranges of other methods' blocks are left out.
        declared: dotted name -> range, as in a recipe's `tune`; None or empty: those of
            [`SPACES`][snello.lab.methods.SPACES] for the method's blocks and the optimizer.

    Raises:
        ConfigError: for an unknown name, for an option that cannot be tuned, for a range that is
            empty or leaves the option's own, and if nothing remains.
    """
    ranges = declared or _defaults(recipe, method)
    check_option_names(ranges)
    uses = method_of(method).uses
    space = tuple(
        _checked(recipe, method, name, given)
        for name, given in ranges.items()
        if name.partition(".")[0] in uses or not _is_block(name)
    )
    check_option(
        bool(space),
        f"tune: no range is left for the method {method!r}: the recipe declares "
        f"{', '.join(ranges)}; choose --method, or declare ranges of its blocks "
        f"({', '.join(sorted(uses)) or 'it has none'}) or of the optimizer",
    )
    return space


def range_of(
    recipe: Recipe, method: str, name: str, declared: Mapping[str, Any] | None = None
) -> Interval:
    """The range of one number, above 0: as declared, else the default.

    Raises:
        ConfigError: for a wrong range.
    """
    ranges = {**_defaults(recipe, method), **(declared or {})}
    found = _checked(recipe, method, name, ranges[name])
    check_option(
        isinstance(found, Interval) and found.low > 0,
        f"tune: {name}: {ranges[name]!r} is no range of numbers above 0",
    )
    assert isinstance(found, Interval)
    return found


def check_ends(recipe: Recipe, method: str, space: Space, splits: Splits) -> None:
    """Build the network, the optimizer and the method at the ends of each range.

    Raises:
        ConfigError: for a value that they do not take, such as an unknown argument of the model.
    """
    for one in space:
        for sample in one.samples:
            tried = replace(with_values(recipe, {one.name: sample}), methods=(method,))
            try:
                validate(tried, splits)
            except SnelloError as error:
                raise ConfigError(f"tune: {one.name}={sample}: {error}") from error


def _is_block(name: str) -> bool:
    """Return True for an option in the block of some method."""
    return name.partition(".")[0] in {spec.uses for spec in METHOD_SPECS.values() if spec.uses}


def _defaults(recipe: Recipe, method: str) -> dict[str, Any]:
    blocks = {**dict.fromkeys(sorted(method_of(method).uses)), "optimizer": None}
    return {
        f"{block}.{field}": given.of(value_of(recipe, f"{block}.{field}"))
        if isinstance(given, Around)
        else given
        for block in blocks
        for field, given in SPACES.get(block, SPACES["lobster"]).items()
    }


def _checked(recipe: Recipe, method: str, name: str, given: Any) -> Any:
    kinds = _kinds(name)
    blocks = tuple(f"{block}." for block in method_of(method).uses)
    check_option(
        not any(map(is_dataclass, kinds)),
        f"tune: {name} is a block of options: name one of them, such as "
        f"{name}.{_first_field(kinds)}",
    )
    check_option(
        name in _LEARNING or name.startswith((*_PARTS, *blocks)),
        f"tune: {name} cannot be tuned: options of the optimizer, the model's arguments, the "
        "method's block, data.batch_size and data.augment can",
    )
    check_option(
        not kinds or bool(_PLAIN.keys() & set(kinds)),
        f"tune: {name} holds several values, and cannot be tuned",
    )
    numbers = {int, float} & set(kinds)
    found = dimension(name, given, whole=int in numbers if numbers else None)
    check_option(
        bool(numbers) or name.startswith(ARGUMENTS) or not isinstance(found, Interval),
        f"tune: {name} is no number: write {{choices: [a, b]}}",
    )
    _check_types(name, found.samples, kinds)
    for sample in found.samples:
        try:
            replace(with_values(recipe, {name: sample}), methods=(method,))  # validates itself
        except ConfigError as error:
            raise ConfigError(f"tune: {name}={sample}: {error}") from error
    return found


def _kinds(name: str) -> tuple[Any, ...]:
    """Types of an option; a model's own argument may have any."""
    if name.startswith(ARGUMENTS):
        return ()
    kind: Any = Recipe
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    if get_origin(kind) is Literal:
        return tuple({type(value): None for value in get_args(kind)})
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _check_types(name: str, samples: tuple[Any, ...], kinds: tuple[Any, ...]) -> None:
    """Check the types of values: a wrong one would fail in a training, long after the start.

    Raises:
        ConfigError: for a value of another type.
    """
    if not kinds:
        return
    plain = [kind for kind in kinds if kind in _PLAIN]
    for sample in samples:
        fits = type(sample) in plain or (type(sample) is int and float in plain)
        check_option(
            fits, f"tune: {name}={sample!r}: it must be {' or '.join(_PLAIN[k] for k in plain)}"
        )


def _first_field(kinds: tuple[Any, ...]) -> str:
    return next((fields(kind)[0].name for kind in kinds if is_dataclass(kind)), "name")


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with other values.

    Args:
        recipe: left as it is.
        values: dotted name of an option -> value.

    Raises:
        ConfigError: for a value out of range.
    """
    changed: Recipe = recipe
    for name, value in values.items():
        changed = _replaced(changed, name.split("."), value)
    return changed


def _replaced(options: Any, path: list[str], value: Any) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(options, Mapping):
        return {**options, name: _replaced(options.get(name, {}), rest, value) if rest else value}
    inner = _replaced(getattr(options, name), rest, value) if rest else value
    return replace(options, **{name: inner})

"""Recipes as YAML: search by name, extension, quick variants, and checks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from snello.errors import ConfigError, nearest, require

from ._config import Recipe
from ._names import recipe_path
from ._scale import given_epochs, not_given, noted, scaled


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, quick: bool = False) -> Recipe:
    """Read and check a recipe.

    Three keys of the file are not fields of [`Recipe`][snello.lab.training.Recipe]: `extends` names a
    recipe that provides the values missing here, `quick` holds the values of a quick trial run, and
    `tune` the ranges that `snello tune` searches.

    Args:
        name_or_path: a name from [`recipe_names`][snello.lab.training.recipe_names] or a YAML file.
        overrides: options as on the command line, `["--epochs=3", "--data.root=/data"]`.
        quick: apply the values of `quick`; overrides take precedence over them.

    Raises:
        ConfigError: for an unknown key, or a value of the wrong type or out of range.
    """
    jsonargparse = require("jsonargparse", "train", "reading recipes")
    values = recipe_values(name_or_path, quick=quick)
    values.pop(_TUNE, None)
    _check_names(name_or_path, [*_dotted(values), *map(_override_name, overrides)])
    _check_given(name_or_path, values)
    _check_comment(name_or_path, overrides)
    parser = recipe_parser()
    # jsonargparse 4.49 renamed instantiate_classes.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        # JSON is valid YAML, so the merged values go through the parser like a recipe file.
        parsed = instantiate(parser.parse_args([f"--recipe={json.dumps(values)}", *overrides]))
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"recipe {name_or_path}: {_explained(str(error))}") from error
    return Recipe(**{f.name: getattr(parsed, f.name) for f in fields(Recipe)})


def _explained(error: str) -> str:
    """An error of jsonargparse, with its types in words."""
    text = " ".join(error.split())
    if not (found := _EXPECTED.fullmatch(text)):
        return text
    option, kind, given = found.groups()
    words = _WORDS.get(kind) or f"one of {kind.removeprefix('typing.Literal')}"
    return f"{option} must be {words}, not {given}"


_EXPECTED = re.compile(
    r'Parser key "([^"]+)": Expected a (<class .*?>|typing.Literal\[.*?\])\. Got value: (.*)'
)
_WORDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'tuple'>": "a list, such as [a,b]",
    "<class 'str'>": "a text",
}
_TUNE = "tune"


def declared_space(name_or_path: str, *, quick: bool = False) -> dict[str, Any]:
    """The ranges that a recipe declares under `tune`, as it writes them; empty without any.

    Args:
        name_or_path: of the recipe.
        quick: apply the values of `quick`.

    Returns:
        Dotted name of an option -> range.

    Raises:
        ConfigError: if `tune` is no mapping, or names something that is no option of a recipe.
    """
    space = recipe_values(name_or_path, quick=quick).get(_TUNE) or {}
    if not isinstance(space, Mapping):
        raise ConfigError(
            f"recipe {name_or_path}: tune must be a mapping of options to ranges, such as "
            f"{{optimizer.lr: [0.01, 1, log]}}, not {space!r}"
        )
    names = [str(name) for name in space]
    _check_names(f"{name_or_path}: tune", names)
    return dict(zip(names, space.values(), strict=True))


def epoch_overrides(
    name_or_path: str,
    overrides: Sequence[str],
    *,
    quick: bool = False,
    note: Mapping[str, Any] | None = None,
) -> list[str]:
    """Overrides that fit a recipe's lengths in epochs to an override of its number of epochs.

    A recipe of 60 epochs that ends with 15 of fine-tuning ends with 1 in 3 epochs. What an override
    sets stays as it is.

    Args:
        name_or_path: of the recipe.
        overrides: as for [`load_recipe`][snello.lab.training.load_recipe].
        quick: the same.
        note: values of a run that is resumed: its lengths stay.

    Returns:
        Further overrides, `["--lobster.finetune=1"]`; none without `--epochs=` among those given.
    """
    epochs = given_epochs(overrides)
    if epochs is None:
        return []
    try:
        values = noted(note) if note else scaled(load_recipe(name_or_path, quick=quick), epochs)
    except ConfigError:  # it is wrong without the overrides: there is nothing to start from
        return []
    return [f"--{name}={json.dumps(value)}" for name, value in not_given(values, overrides)]


def recipe_values(name_or_path: str, *, quick: bool = False) -> dict[str, Any]:
    """The values of a recipe file, merged over those of the recipes that it extends.

    Raises:
        ConfigError: if the file is not a mapping, extends itself, or has no quick variant although
            `quick` is true.
    """
    values = _extended(name_or_path, ())
    smaller = values.pop("quick", None)
    if not quick:
        return values
    if not isinstance(smaller, Mapping):
        raise ConfigError(
            f"recipe {name_or_path} has no quick variant: add a mapping 'quick:' with smaller "
            "values, such as 'quick: {epochs: 2, data: {limit: 200}}'"
        )
    return _merged(values, smaller)


def _extended(name_or_path: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = recipe_path(name_or_path).resolve()
    if path in seen:
        raise ConfigError(
            f"recipe {name_or_path} extends itself, through {' and '.join(map(str, seen))}"
        )
    values = _read(path, name_or_path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"recipe {name_or_path}: 'extends' must name one recipe, not {base!r}")
    neighbour = path.parent / base  # a file in the same folder, or a name
    return _merged(
        _extended(str(neighbour) if neighbour.is_file() else base, (*seen, path)), values
    )


def option_names() -> tuple[str, ...]:
    """Dotted names of a recipe's options: `"epochs"`, `"data.batch_size"` ..."""
    return tuple(_options_of(Recipe))


def _options_of(kind: Any, within: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        name = f"{within}{field.name}"
        yield name
        if is_dataclass(hints[field.name]):
            yield from _options_of(hints[field.name], f"{name}.")


def _dotted(values: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{within}{key}"
        yield name
        if isinstance(value, Mapping) and name != _FREE:
            yield from _dotted(value, f"{name}.")


_FREE = "model.arguments"
"""Block whose keys are not checked here: they are arguments of the model's factory."""


def check_option_names(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Check that dotted names are options of a recipe.

    Args:
        names: dotted names of options.
        others: further names to suggest as the nearest one.

    Raises:
        ConfigError: for the first unknown name; the message suggests the nearest one.
    """
    known = option_names()
    for name in names:
        if name not in known and not name.startswith(f"{_FREE}."):
            raise ConfigError(f"a recipe has no option {name!r}{nearest(name, [*known, *others])}")


def _check_names(recipe: str, names: Iterable[str]) -> None:
    try:
        check_option_names(names)
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe}: {error}") from error


def _check_given(
    recipe: str, values: Mapping[str, Any], kind: Any = Recipe, within: str = ""
) -> None:
    """Refuse options without a value, and blocks that are no mapping: jsonargparse takes both.

    The names are those of options.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        hint, dotted = hints[name], f"{within}{name}"
        if is_dataclass(hint) and isinstance(value, Mapping):
            _check_given(recipe, value, hint, f"{dotted}.")
        elif is_dataclass(hint):
            raise ConfigError(
                f"recipe {recipe}: {dotted} must be a mapping of options, indented below it"
            )
        elif value is None and NoneType not in get_args(hint):
            raise ConfigError(
                f"recipe {recipe}: {dotted} has no value: give one, or remove the line"
            )


def _override_name(override: str) -> str:
    return override.partition("=")[0].removeprefix("--")


def _check_comment(recipe: str, overrides: Sequence[str]) -> None:
    """Refuse a value that starts with #: the YAML parser would drop it as a comment."""
    for override in overrides:
        name, _, value = override.partition("=")
        if value.lstrip().startswith("#"):
            raise ConfigError(
                f"recipe {recipe}: {name} has the value {value!r}, which YAML reads as a comment; "
                f"write a path as {'./' + value.lstrip()!r}"
            )


def _read(path: Path, name: str) -> dict[str, Any]:
    yaml = require("yaml", "train", "reading recipes")
    try:
        values = yaml.load(path.read_text("utf-8"), _loader())
    except ConfigError as error:
        raise ConfigError(f"recipe {name}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"recipe {name} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"recipe {name} must be a mapping of options, not a {type(values).__name__}"
        )
    return values


@cache
def _loader() -> Any:
    """PyYAML's safe loader, made to refuse duplicate keys instead of keeping the last one."""
    yaml = require("yaml", "train", "reading recipes")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Safe loader that refuses a mapping with duplicate keys."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            """Check the keys written in the file; keys merged with `<<` may be overridden."""
            seen: dict[Any, Any] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # PyYAML refuses it
                name = (key.tag, key.value)
                if name in seen:
                    lines = f"lines {seen[name] + 1} and {key.start_mark.line + 1}"
                    raise ConfigError(
                        f"the key {key.value!r} is given twice, in {lines}: remove one"
                    )
                seen[name] = key.start_mark.line
            return super().construct_mapping(node, deep)

    return Loader


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`, recursively.

    Where `over` names another model, the base's model arguments are dropped.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not _other_model(old, value):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def _other_model(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "arguments" in old and "name" in new and new["name"] != old.get("name")


def recipe_parser(**options: Any) -> Any:
    """A jsonargparse parser with one option for every field of a recipe."""
    jsonargparse = require("jsonargparse", "train", "reading recipes")
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument(
        "--recipe", action="config", help="a YAML file with any of the options below"
    )
    parser.add_class_arguments(Recipe, fail_untyped=False)
    return parser

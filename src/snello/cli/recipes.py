"""`snello recipes`: list, copy and check recipes."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello.errors import ConfigError, nearest, require
from snello.files import write_text
from snello.lab.recipes import recipe_names, recipe_parser, recipe_path, recipe_summary

from ._recipes import FIELDS, read_recipe

HELP = "list the recipes of snello, copy one to edit it, check one, or list the fields of a recipe"
EPILOG = f"{FIELDS}\n\nexample: snello recipes cp digits mine.yaml, then snello recipes validate mine.yaml --epochs=3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument(
        "action", nargs="?", default="ls", choices=("ls", "cp", "fields", "validate"),
        help="default: ls",
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="the recipe to copy or to check")
    parser.add_argument("target", nargs="?", help="the file to write; default: NAME.yaml")
    parser.add_argument("--quick", action="store_true", help="check the recipe's quick variant")
    parser.set_defaults(takes_recipe=True)


def run(arguments: argparse.Namespace) -> None:
    """List, copy or check recipes."""
    if arguments.overrides and arguments.action != "validate":
        option = arguments.overrides[0]
        hint = nearest(option.partition("=")[0], ("--quick", "--seed", "--device"))
        raise ConfigError(f"unknown option {option!r}{hint}; see: snello recipes --help")
    if arguments.name and arguments.action in ("ls", "fields"):
        raise ConfigError(f"recipes {arguments.action} takes no name, such as {arguments.name!r}")
    if arguments.action == "ls":
        for name in recipe_names():
            print(f"{name:20} {recipe_summary(recipe_path(name))}")
    elif arguments.action == "fields":
        recipe_parser(prog="snello journey RECIPE").print_help()
    elif arguments.action == "validate" and arguments.name:
        _validate(arguments)
    elif not arguments.name:
        raise ConfigError(f"name a recipe, one of: {', '.join(recipe_names())}")
    else:
        _copy(
            recipe_path(arguments.name),
            Path(arguments.target or f"{Path(arguments.name).stem}.yaml"),
        )


def _validate(arguments: argparse.Namespace) -> None:
    require("jsonargparse", "train", "reading recipes")
    from snello.lab.training import validate

    recipe = read_recipe(arguments, arguments.name)
    splits = validate(recipe)
    print(
        f"{arguments.name}: {recipe.model.name} on {splits.name} ({splits.source}), {len(splits.train)} training "
        f"images; {', '.join(recipe.methods)} can start"
    )


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target} already exists: choose another name, or remove it first")
    text = source.read_text("utf-8")
    print(f"written: {write_text(target, text)}")

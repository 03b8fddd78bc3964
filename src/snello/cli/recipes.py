"""``snello recipes``: list them, or get your own copy."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello.errors import ConfigError, require
from snello.modelfile import write_file

HELP = "list the recipes that come with snello, copy one to change it, or list the fields of a recipe"
EPILOG = "example: snello recipes cp digits mine.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=("ls", "cp", "fields"))
    parser.add_argument("name", nargs="?", help="the recipe to copy")
    parser.add_argument("target", nargs="?", help="the file to write; default: NAME.yaml")


def run(arguments: argparse.Namespace) -> None:
    """List, or copy."""
    require("jsonargparse", "train", "reading recipes")
    from snello.training import recipe_names, recipe_parser, recipe_path

    if arguments.action == "ls":
        for name in recipe_names():
            print(f"{name:20} {_summary(recipe_path(name))}")
    elif arguments.action == "fields":
        recipe_parser(prog="snello journey RECIPE").print_help()
    elif not arguments.name:
        raise ConfigError(f"which recipe? one of: {', '.join(recipe_names())}")
    else:
        _copy(recipe_path(arguments.name), Path(arguments.target or f"{Path(arguments.name).stem}.yaml"))


def _summary(path: Path) -> str:
    """A recipe opens with one line on what it is."""
    return path.read_text().splitlines()[0].lstrip("# ").rstrip(":")


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target} exists already: give another name, or remove it first")
    text = source.read_text()
    print(f"written: {write_file(target, lambda beside: beside.write_text(text))}")

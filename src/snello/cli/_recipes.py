"""Recipe, overrides and run folder, shared by ``journey``, ``train`` and ``reproduce``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from snello.errors import require

from ._own_code import import_own_code

if TYPE_CHECKING:
    from snello.lab.training import Recipe


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe, --out, --resume and --quick; all other options are fields of the recipe."""
    parser.add_argument(
        "recipe",
        nargs="?",
        default="digits",
        help="a name from 'snello recipes ls', or a YAML file",
    )
    parser.add_argument("--out", help="run folder; default: runs/RECIPE")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument(
        "--quick", action="store_true", help="use the recipe's quick variant, a trial of minutes"
    )
    parser.set_defaults(takes_recipe=True)


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Overrides of recipe fields from the command line, as ``--name=value``.

    Raises:
        ConfigError: for an option that neither the command nor a recipe has.
    """
    from snello.lab.training import check_option_names

    own = [option.removeprefix("--") for option in arguments.options]
    check_option_names(
        (option.partition("=")[0].removeprefix("--") for option in arguments.overrides), own
    )
    given = [
        f"--{name}={value}"
        for name in ("seed", "device")
        if (value := getattr(arguments, name)) is not None
    ]
    return [*arguments.overrides, *given]


def read_recipe(arguments: argparse.Namespace, name: str | None = None) -> Recipe:
    """Read a recipe and apply the overrides of the command line."""
    from snello.lab.training import load_recipe

    recipe = load_recipe(name or arguments.recipe, overrides(arguments), quick=arguments.quick)
    # The user chose this recipe, so that the factory it names may be imported.
    import_own_code([recipe.model.name])
    return recipe


def is_first() -> bool:
    """Return True for the process that prints: rank 0 under torchrun."""
    from snello.lab.training import world

    return world().is_first


def run_folder(arguments: argparse.Namespace) -> Path:
    """Folder of the run."""
    return Path(arguments.out) if arguments.out else Path("runs") / Path(arguments.recipe).stem


def need_training() -> None:
    """Check that the packages for training are installed, before any work is done."""
    require("lightning", "train", "training")
    require("rich", "report", "drawing tables")


FIELDS = (
    "Every field of the recipe is also an option, such as --epochs=3 or --data.batch_size=50;\n"
    "'snello recipes fields' lists them."
)

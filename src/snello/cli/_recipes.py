"""Recipe, overrides and run folder, shared by `journey`, `train` and `reproduce`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError, require
from snello.files import read_json_object
from snello.lab.methods import method_of
from snello.lab.recipes import (
    check_option_names,
    epoch_overrides,
    load_recipe,
    recipe_names,
    recipe_path,
)

from ._names import complete_with
from ._own_code import import_own_code

if TYPE_CHECKING:
    from snello.lab.recipes import Recipe


def add_recipe_arguments(
    parser: argparse.ArgumentParser, *, folder: str = "runs/RECIPE", resume: bool = True
) -> None:
    """Add the recipe, --out, --resume and --quick; all other options are fields of the recipe.

    Args:
        parser: of the command.
        folder: the default of --out, for its help.
        resume: add --resume; a command without it continues what the folder holds.
    """
    action = parser.add_argument(
        "recipe",
        nargs="?",
        default="digits",
        help="a name from 'snello recipes ls', or a YAML file",
    )
    complete_with(action, recipe_names())
    parser.add_argument("--out", help=f"run folder; default: {folder}")
    if resume:
        parser.add_argument(
            "--resume", action="store_true", help="continue the run in the folder, or start it"
        )
    parser.add_argument(
        "--quick", action="store_true", help="use the recipe's quick variant, a trial of minutes"
    )
    parser.set_defaults(takes_recipe=True)


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Overrides of recipe fields from the command line, as `--name=value`.

    Raises:
        ConfigError: for an option that neither the command nor a recipe has.
    """
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
    name, given = name or arguments.recipe, overrides(arguments)
    note = _note(arguments) if getattr(arguments, "resume", False) else None
    fitted = epoch_overrides(name, given, quick=arguments.quick, note=note)
    recipe = load_recipe(name, [*fitted, *given], quick=arguments.quick)
    used = {"optimizer", *(block for m in recipe.methods for block in method_of(m).uses)}
    said = [text.removeprefix("--") for text in fitted if text[2:].partition(".")[0] in used]
    if said and note is None and is_first():
        length = f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
        print(f"snello: note: fitted to {length}: {', '.join(said)}", file=sys.stderr)
    # The user chose this recipe, so that the factory it names may be imported.
    import_own_code([recipe.model.name])
    return recipe


def _note(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The recipe noted in the folder of the run to be resumed; None if there is none.

    A journey has a folder for each method, whose notes differ in the method alone.
    """
    folder = run_folder(arguments)
    for path in (folder / "recipe.json", *sorted(folder.glob("*/recipe.json"))):
        try:
            return read_json_object(path)
        except ConfigError:
            continue  # a damaged note has an error of its own, later
    return None


def is_first() -> bool:
    """Return True for the process that prints: rank 0 under torchrun."""
    from snello.lab.training import world

    return world().is_first


def run_folder(arguments: argparse.Namespace) -> Path:
    """Folder of the run."""
    return Path(arguments.out) if arguments.out else Path("runs") / Path(arguments.recipe).stem


def need_training(arguments: argparse.Namespace) -> None:
    """Check the names on the command line, then the packages for training, before any work is done.

    Raises:
        ConfigError: for an unknown recipe, method or field of a recipe.
        MissingExtraError: naming the extra to install.
    """
    overrides(arguments)
    if "recipe" in arguments:
        recipe_path(arguments.recipe)
    if getattr(arguments, "method", None) is not None:
        method_of(arguments.method)
    require("lightning", "train", "training")
    require("rich", "report", "drawing tables")
    from snello.lab.reporting import pages

    pages.check_libraries()


FIELDS = (
    "Every field of the recipe is also an option, such as --epochs=3 or --data.batch_size=50;\n"
    "'snello recipes fields' lists them."
)

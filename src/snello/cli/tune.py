"""`snello tune`: search the hyper-parameters of a recipe with Optuna."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError, require
from snello.lab.methods import METHODS
from snello.lab.recipes import declared_space

from ._inputs import finish
from ._names import complete_with, costs, pruners, samplers
from ._recipes import FIELDS, add_recipe_arguments, need_training, read_recipe

if TYPE_CHECKING:
    from snello.lab.recipes import Recipe
    from snello.lab.reporting import Table
    from snello.lab.reporting.pages import Page

HELP = "search the hyper-parameters of a recipe: the lowest cost within a bound on the drop of accuracy"
EPILOG = (
    f"{FIELDS}\nRanges are declared in the recipe: 'tune: {{lobster.lmbda: [1e-5, 1e-3, log]}}'.\n"
    "The same command goes on with the study in its folder.\n\n"
    "example: snello tune digits --method=lobster --trials=30 --within=10m --max-drop=0.01\n"
    "example: snello tune digits --method=neq --updated=0.5"
)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = r"(\d+(?:\.\d+)?)(secs?|s|mins?|m|hours?|h|days?|d)(?![a-z])"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_recipe_arguments(parser, folder="runs/RECIPE-tune", resume=False)
    action = parser.add_argument(
        "--method", metavar="METHOD", help=f"one of {', '.join(METHODS)}; default: the recipe's first besides baseline"
    )  # fmt: skip
    complete_with(action, METHODS)
    parser.add_argument(
        "--trials", type=int, default=20, help="trials of the whole study, pruned ones included; default: 20"
    )  # fmt: skip
    parser.add_argument(
        "--within", help="time for everything: 90s, 45m, 2h, 1h30m, 1d; default: no bound"
    )
    parser.add_argument(
        "--max-drop", type=float, default=0.01, help="largest drop of the validation accuracy against the dense "
        "network: 0.01 is one point; default: 0.01",
    )  # fmt: skip
    parser.add_argument(
        "--penalty", type=float, default=10.0, help="cost per unit of drop beyond the bound; default: 10"
    )  # fmt: skip
    for name, known, text in (
        ("minimise", costs(), "default: that which the method lowers"),
        ("sampler", samplers(), "default: tpe"),
        ("pruner", pruners(), "default: asha"),
    ):
        action = parser.add_argument(
            f"--{name}", metavar=name.upper(), help=f"one of {', '.join(known)}; {text}"
        )
        complete_with(action, known)
    parser.add_argument(
        "--front", action="store_true", help="search the front of cost and accuracy, without pruner"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the training images in each epoch of a trial; default: 1"
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=3, help="other seeds to train the winner with; default: 3"
    )
    parser.add_argument(
        "--storage", help="of the study: a journal file or a database URL (sqlite:///tune.db, postgresql://...), "
        "for many workers; default: study.log in the folder",
    )  # fmt: skip
    parser.add_argument(
        "--updated", type=float, metavar="SHARE", help="no search: find NEq's eps for this share of updated neurons "
        "by bisection",
    )  # fmt: skip
    parser.add_argument(
        "--ramp", action="store_true", help="no search: accuracy against sparsity from one training with a rising "
        "lambda",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Tune the recipe, show the tables, write the report and the winner's recipe."""
    within = _seconds(arguments.within)
    _check_together(arguments)
    need_training(arguments)
    require("optuna", "tune", "tuning")
    if arguments.method is not None:
        # Options of methods that do not run need not be valid for this number of epochs.
        arguments.overrides = [
            f"--methods={json.dumps([arguments.method])}", *arguments.overrides
        ]  # fmt: skip
    recipe = read_recipe(arguments)
    arguments.method = arguments.method or (
        "neq"
        if arguments.updated is not None
        else next((method for method in recipe.methods if method != "baseline"), "baseline")
    )
    declared = declared_space(arguments.recipe, quick=arguments.quick)
    folder = Path(arguments.out or Path("runs") / f"{Path(arguments.recipe).stem}-tune")
    if arguments.updated is not None:
        tables, page = _epsilon(arguments, recipe, folder, declared)
    elif arguments.ramp:
        tables, page = _ramp(arguments, recipe, folder, declared)
    else:
        tables, page = _tune(arguments, recipe, folder, declared, within)
    _written(folder, tables, page)


def _check_together(arguments: argparse.Namespace) -> None:
    """Refuse options that would have no effect beside others.

    Raises:
        ConfigError: naming both.
    """
    given = {name: value is not None for name, value in vars(arguments).items()}
    given |= {"front": arguments.front, "ramp": arguments.ramp, "share": arguments.share != 1}
    search = ("within", "minimise", "sampler", "pruner", "storage", "share")
    excluded = {
        "updated": ("ramp", "front", *search),
        "ramp": ("front", *search),
        "front": ("pruner",),
    }
    for name, others in excluded.items():
        for other in others:
            if given[name] and given[other]:
                raise ConfigError(f"--{other} has no effect with --{name}: leave out one of them")


def _tune(
    arguments: argparse.Namespace,
    recipe: Recipe,
    folder: Path,
    declared: dict[str, Any],
    within: float | None,
) -> tuple[tuple[Table, ...], Page]:
    from snello.lab.reporting import finals_table, pages, progress, trials_table
    from snello.lab.training.tuning import TuneSettings, tune
    from snello.search.tune import Choices, Goal

    settings = TuneSettings(
        method=arguments.method, trials=arguments.trials, within=within, seeds=arguments.seeds,
        minimise=arguments.minimise, goal=Goal(arguments.max_drop, arguments.penalty),
        choices=Choices(arguments.sampler or "tpe", arguments.pruner or "asha", arguments.front),
        share=arguments.share, storage=arguments.storage,
    )  # fmt: skip
    with progress(arguments.trials + 3 * arguments.seeds + 1) as line:
        found = tune(recipe, folder, settings, declared=declared, progress=line)
    title = f"{_name(recipe)}, {found.method}: tuning"
    tables: tuple[Table, ...] = (trials_table(found, title),)
    if found.finals:
        tables += (finals_table(found, "Trained with other seeds"),)
    if found.waiting:
        print("other processes still work on the study: the last of them trains the winner")
    if found.recipe is not None:
        print(f"written: {found.recipe}, the winner as a recipe for snello train")
    return tables, pages.tuning_page(title, found, tables)


def _epsilon(
    arguments: argparse.Namespace, recipe: Recipe, folder: Path, declared: dict[str, Any]
) -> tuple[tuple[Table, ...], Page]:
    from snello.lab.reporting import epsilon_table, pages, progress
    from snello.lab.training.tuning import epsilon

    method = arguments.method
    with progress(8) as line:
        found = epsilon(
            recipe, folder, arguments.updated, method=method, declared=declared, progress=line
        )
    title = f"{_name(recipe)}, {method}: eps for {arguments.updated:.0%} of the neurons"
    table = epsilon_table(found, title)
    print(f"written: {found.recipe}, a recipe for snello train")
    return (table,), pages.epsilon_page(title, found, table)


def _ramp(
    arguments: argparse.Namespace, recipe: Recipe, folder: Path, declared: dict[str, Any]
) -> tuple[tuple[Table, ...], Page]:
    from snello.lab.reporting import pages, progress, ramp_table
    from snello.lab.training.tuning import ramp

    with progress(recipe.epochs, "epoch") as line:
        found = ramp(recipe, folder, method=arguments.method, declared=declared, progress=line)
    title = f"{_name(recipe)}, {arguments.method}: a ramp of lambda"
    table = ramp_table(found, title)
    return (table,), pages.ramp_page(title, found, table)


def _written(folder: Path, tables: tuple[Table, ...], page: Page) -> None:
    from snello.lab.reporting import pages, show

    for table in tables[1:]:
        show(table)
    print(f"written: {pages.write_page(page, folder / 'report.html')}")
    finish(tables[0], page.data, folder / "report.json")


def _name(recipe: Recipe) -> str:
    return f"{recipe.model.label} on {recipe.data.name}"


def _seconds(text: str | None) -> float | None:
    """Seconds of a time such as `2h` or `1h30m`; of a plain number, that number.

    Raises:
        ConfigError: for another form.
    """
    if text is None:
        return None
    plain = "".join(text.lower().split())
    if re.fullmatch(r"\d+(\.\d+)?", plain):
        return float(plain)
    parts = re.findall(_PART, plain)
    if not parts or re.sub(_PART, "", plain):
        raise ConfigError(f"--within={text!r} is no time: write 90s, 45m, 2h, 1h30m or 1d")
    return sum(float(number) * _UNITS[unit[0]] for number, unit in parts)

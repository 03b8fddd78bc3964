"""``snello train``: one method of a recipe."""

from __future__ import annotations

import argparse

from ._recipes import FIELDS, add_recipe_arguments, need_training, overrides, run_folder

HELP = "train one network by one method of a recipe"
EPILOG = f"{FIELDS}\n\nexample: snello train digits --method=serene --out=runs/serene"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_recipe_arguments(parser)
    parser.add_argument("--method", choices=("baseline", "lobster", "serene", "neq"), default="baseline")


def run(arguments: argparse.Namespace) -> None:
    """Train, and say how it went."""
    need_training()
    from snello.reporting import Table, percent, progress, show
    from snello.training import load_recipe, train

    recipe, folder = load_recipe(arguments.recipe, overrides(arguments)), run_folder(arguments)
    with progress(recipe.epochs) as line:
        result = train(recipe, arguments.method, folder, resume=arguments.resume, progress=line)
    last = result.epochs[-1]
    header = ("Method", "Accuracy", "Loss", "Pruned", "Neurons updated", "Seconds")
    row = (
        result.method, percent(result.test_accuracy), f"{result.test_loss:.4f}", percent(last.pruned),
        percent(last.updated), f"{result.seconds:.0f}",
    )  # fmt: skip
    note = f"Last epoch, test images. {result.threads} thread(s), {result.device}, {result.precision}."
    show(Table(f"{recipe.model.name} on {recipe.data.name}", header, (row,), note))
    print(f"written: {folder / result.model}, {folder / 'result.json'}")

"""`snello train`: train with one method of a recipe."""

from __future__ import annotations

import argparse
import json

from snello.lab.methods import METHODS

from ._recipes import FIELDS, add_recipe_arguments, is_first, need_training, read_recipe, run_folder

HELP = "train one network with one method of a recipe"
EPILOG = f"{FIELDS}\n\nexample: snello train digits --method=serene --out=runs/serene"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--method", default="baseline", metavar="METHOD",
        help=f"{', '.join(METHODS)}; stochastic takes any share, '+' joins any sensitivity",
    )  # fmt: skip
    parser.add_argument(
        "--matched",
        help="folder of the NEq run that stochastic-star imitates; default: neq next to --out",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train the network and show its result."""
    need_training(arguments)
    from snello.lab.reporting import Table, pages, percent, progress, show
    from snello.lab.training import finished_epochs, train

    # Options of methods that do not run need not be valid for this number of epochs.
    arguments.overrides = [f"--methods={json.dumps([arguments.method])}", *arguments.overrides]
    recipe, folder = read_recipe(arguments), run_folder(arguments)
    before = finished_epochs(folder) if arguments.resume else 0
    with progress(recipe.epochs, "epoch", before) as line:
        result = train(
            recipe, arguments.method, folder,
            resume=arguments.resume, progress=line, matched=arguments.matched,
        )  # fmt: skip
    if not is_first():
        return
    last = result.epochs[-1]
    header = ("Method", "Accuracy", "Loss", "Pruned", "Neurons updated", "Seconds")
    row = (
        result.method, percent(result.test_accuracy), f"{result.test_loss:.4f}", percent(last.pruned),
        percent(last.updated), f"{result.seconds:.0f}",
    )  # fmt: skip
    note = (
        f"Last epoch, test images. {result.threads} thread(s), {result.device}, {result.precision}."
    )
    title = f"{recipe.model.label} on {recipe.data.name}"
    show(Table(title, header, (row,), note))
    page = pages.write_page(pages.training_page(title, result), folder / "report.html")
    print(f"written: {folder / result.model}, {page}, {folder / 'result.json'}")

"""`snello journey`: run the round trip on one recipe."""

from __future__ import annotations

import argparse

from snello.errors import require

from ._recipes import FIELDS, add_recipe_arguments, is_first, need_training, read_recipe, run_folder

HELP = "the whole round trip on one recipe: train, prune, simplify, code, export, measure; train again with NEq"
EPILOG = f"{FIELDS}\n\nexample: snello journey digits --out=runs/digits --epochs=40"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_recipe_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the journey, show its tables and write the report."""
    need_training(arguments)
    require("matplotlib", "report", "drawing plots")
    from snello.codec import require_nncodec

    require_nncodec()
    require("onnxruntime", "onnx", "measuring exported networks")
    require("onnxscript", "onnx", "exporting to ONNX")
    from snello.lab.reporting import (
        finetuning_table,
        pages,
        progress,
        round_trip_table,
        shipping_table,
        show,
        training_table,
        write_report,
    )
    from snello.lab.training import finished_epochs, journey

    recipe, folder = read_recipe(arguments), run_folder(arguments)
    before = sum(finished_epochs(folder / m) for m in recipe.methods) if arguments.resume else 0
    with progress(len(recipe.methods) * recipe.epochs, "epoch", before) as line:
        result = journey(recipe, folder, resume=arguments.resume, progress=line)
    if not is_first():
        return
    write_report(result, folder)
    page = pages.write_page(pages.journey_page(result, folder), folder / "report.html")
    if result.shipped:
        show(shipping_table(result))
    if result.trained:
        show(training_table(result))
    if (tuned := finetuning_table(result)) is not None:
        show(tuned)
    if (both := round_trip_table(result)) is not None:
        show(both)
    print(f"written: {page}, and the same as report.md and report.json")

"""``snello sweep``: measure the pruning potential of a trained network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError, nearest
from snello.lab.methods import METHOD_SPECS

from ._data import add_data_arguments, load_images
from ._inputs import add_model_arguments, check_writable, device, finish, read_model
from ._names import complete_with, datasets, importances

if TYPE_CHECKING:
    from torch import nn

    from snello.pruning import PotentialPoint

HELP = (
    "accuracy against pruning ratio: one-shot pruning of a trained network by several importances"
)
EPILOG = "example: snello sweep runs/digits/baseline/model.pt --data=digits --out=sweep.json"
SENSITIVITIES = {spec.name: spec.scores for spec in METHOD_SPECS.values() if spec.scores}
"""Sensitivities as scores of a trained network, made from calibration batches."""
RATIOS = "0,0.5,0.7,0.8,0.9,0.95,0.98"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    action = parser.add_argument(
        "--data", default="digits", help=f"one of: {', '.join(datasets())}; default: digits"
    )
    complete_with(action, datasets())
    add_data_arguments(parser)
    parser.add_argument("--granularity", choices=("weight", "neuron"), default="weight")
    parser.add_argument("--scope", choices=("global", "layer"), default="global")
    names = (*importances(), *SENSITIVITIES)
    parser.add_argument(
        "--importances",
        help=f"comma-separated, of {', '.join(names)}; default: all for the granularity",
    )
    parser.add_argument(
        "--ratios", default=RATIOS, help=f"pruning ratios, comma-separated; default: {RATIOS}"
    )
    parser.add_argument(
        "--calibration",
        type=int,
        default=1000,
        help="number of training images to compute scores on",
    )
    parser.add_argument(
        "--out", default="sweep.json", help="the JSON file to write; the plot is saved next to it"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure the potential, show the table, write JSON and plot."""
    out = check_writable(arguments.out)
    from snello.lab.reporting import Table, busy, percent, plot_potential

    ratios = _ratios(arguments.ratios)
    with busy("pruning and measuring"):
        points, facts = _points(arguments, ratios)
    curves: dict[str, dict[float, list[float]]] = {}
    for point in points:
        curves.setdefault(point.method, {})[point.ratio] = [point.value]
    header = ("Importance", *(percent(ratio, 1) for ratio in ratios))
    rows = tuple(
        (m, *(percent(curve[ratio][0]) for ratio in ratios)) for m, curve in curves.items()
    )
    note = (
        f"Accuracy on {facts['images']} test images after pruning a share of the {arguments.granularity}s in one shot, "
        f"without fine-tuning; scope {arguments.scope}, the head unpruned, {facts['device']}."
    )
    title = f"{facts['model']} on {arguments.data}: pruning potential"
    finish(Table(title, header, rows, note), {**facts, "points": points}, out)
    axis = f"{arguments.granularity}s left [%]"
    print(f"written: {plot_potential(curves, Path(f'{out}.png'), title, xlabel=axis)}")


def _points(
    arguments: argparse.Namespace, ratios: list[float]
) -> tuple[tuple[PotentialPoint, ...], dict[str, Any]]:
    from snello.lab.datasets import loader
    from snello.lab.training import check_fits, evaluate
    from snello.pruning import pruning_potential

    model, record = read_model(arguments)
    splits = load_images(arguments, record.images, arguments.image_size)
    if splits.input_shape != tuple(record.input_shape):
        raise ConfigError(
            f"the model takes images of {tuple(record.input_shape)}, those of {arguments.data} are "
            f"{splits.input_shape}: choose another --data or --image-size"
        )
    model = model.to(device(arguments))
    check_fits(record.model.name, model, splits)
    batches = loader(splits.train, splits, 100, limit=arguments.calibration)
    calibration = [(images.to(record.dtype), labels) for images, labels in batches]
    test = loader(splits.test, splits, 500)

    def accuracy(pruned: nn.Module) -> float:
        return evaluate(pruned, test).accuracy

    points = pruning_potential(
        model, accuracy, _importances(arguments, calibration), ratios,
        granularity=arguments.granularity, scope=arguments.scope,
    )  # fmt: skip
    facts = {
        "model": record.model.name, "data": arguments.data, "images": len(splits.test),
        "granularity": arguments.granularity, "scope": arguments.scope, "calibration": arguments.calibration,
        "device": str(device(arguments)),
    }  # fmt: skip
    return points, facts


def _importances(arguments: argparse.Namespace, calibration: Any) -> dict[str, Any]:
    from snello.pruning import CALIBRATED, IMPORTANCES

    known = {
        **{name: name for name in IMPORTANCES},
        **{n: make(calibration) for n, make in (CALIBRATED | SENSITIVITIES).items()},
    }
    if arguments.importances is None:
        # 'bn-scale' needs a BatchNorm after every layer, so that it is used only on request.
        same = {"bn-scale"} | ({"l2"} if arguments.granularity == "weight" else set())
        return {name: importance for name, importance in known.items() if name not in same}
    names = arguments.importances.split(",")
    if unknown := [name for name in names if name not in known]:
        hint = nearest(unknown[0], known)
        raise ConfigError(
            f"--importances: there is no {unknown[0]!r}{hint}; choose from: {', '.join(known)}"
        )
    return {name: known[name] for name in names}


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--ratios={text!r} must be numbers separated by commas, such as {RATIOS}"
        ) from error
    if not all(0 <= ratio < 1 for ratio in ratios):
        raise ConfigError(f"--ratios={text!r}: every ratio must be in [0, 1)")
    return ratios

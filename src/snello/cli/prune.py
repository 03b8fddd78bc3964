"""`snello prune`: remove channels of a trained network, with fine-tuning in between."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from snello.errors import ConfigError

from ._data import (
    add_data_arguments,
    add_dataset_argument,
    check_drop,
    check_image_counts,
    classifier_images,
    require_data,
    warn_if_few,
    warn_if_seen,
)
from ._finetuning import add_finetuning_arguments, fine_tuning
from ._images import fitted
from ._inputs import (
    add_model_arguments,
    check_model_file,
    check_named_model,
    check_one_input,
    device,
    finish,
    read_model,
)
from ._names import channel_importances, complete_with
from ._own_code import named_code
from ._saving import save_or_rescue
from ._words import check_known, listed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from snello.lab.datasets import Splits
    from snello.lab.reporting import Table
    from snello.pruning import LayerLimits
    from snello.pruning.channels import ChannelImportance, Keep
    from snello.search.prune import Pruned

HELP = "remove the least important channels of a trained network, and fine-tune the smaller network"
EPILOG = (
    "example: snello prune model.pt --data=cifar10 --macs=0.5 --steps=5 --finetune=10 --out=lean.pt"
)
CALIBRATED = ("taylor", "taylor-outputs", "fisher", "activation", "lobster", "serene")
"""Importances that are measured on batches."""
BATCH = 100
DATA = ("data", "data_path", "image_size", "validation_path", "seed")
"""Options that choose the images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    add_dataset_argument(parser)
    add_data_arguments(parser, judged=True)
    for name in ("macs", "parameters", "channels"):
        parser.add_argument(f"--{name}", type=float, help=f"share of the {name} to keep, like 0.5")
    names = (*channel_importances(), *CALIBRATED)
    action = parser.add_argument(
        "--importance", default="taylor", help=f"one of {', '.join(names)}; default: taylor"
    )
    complete_with(action, names)
    parser.add_argument(
        "--calibration", type=int, default=1000, help="number of training images to measure "
        "importances and BatchNorm statistics on; default: 1000",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=1, help="number of pruning steps; default: 1")
    add_finetuning_arguments(parser, "after each step")
    parser.add_argument(
        "--reconstruct", nargs="?", const=True, default=False, choices=("biases",),
        metavar="biases", help="fit the layers that used removed channels by least squares before "
        "fine-tuning; 'biases' shifts the biases alone",
    )  # fmt: skip
    parser.add_argument(
        "--keep-at-least", type=float, metavar="SHARE", help="smallest share of each dimension to keep; "
        "default: 0.1",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, help="largest drop of the validation accuracy: 0.01 is one point"
    )
    parser.add_argument(
        "--round-to", type=int, default=1, metavar="N", help="widths are multiples of N; default: 1"
    )
    parser.add_argument(
        "--measured",
        action="store_true",
        help="choose what to remove by the change of the outputs "
        "on the calibration images, not by scores; pays with --round-to",
    )
    parser.add_argument(
        "--branches", action="store_true", help="also remove whole residual branches; with --measured"
    )  # fmt: skip
    parser.add_argument("--exclude", default="", help="modules to leave unpruned, comma-separated")
    parser.add_argument(
        "--folder", help="folder to save each step in, and to continue an interrupted run from"
    )
    parser.add_argument(
        "--out", default="lean.pt", help="the model file to write; default: lean.pt"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prune and fine-tune in steps, report each step, and write the model."""
    from snello.lab.datasets import loader
    from snello.lab.reporting import pages, progress
    from snello.lab.training import evaluate
    from snello.search.prune import prune

    pages.check_libraries()
    out = check_model_file(arguments, arguments.out)
    keep, limits = _keep(arguments), _limits(arguments)
    check_drop(arguments)
    if arguments.branches and not arguments.measured:
        raise ConfigError("--branches needs --measured: branches have no score, they are measured")
    require_data(arguments, arguments.file, "prune needs data to measure on")
    check_image_counts(arguments, "calibration")
    model, record = read_model(arguments)
    check_named_model(arguments, model, record, out)
    check_one_input(record, "prune")
    model = model.to(device(arguments))
    splits = classifier_images(arguments, model, record, "prune")
    record = fitted(record, splits)
    if arguments.max_drop is not None:
        warn_if_seen(arguments, splits)
        warn_if_few(len(splits.validation), arguments.max_drop)
    validation = loader(splits.validation, splits, 500)
    batches = list(
        loader(splits.train, splits, BATCH, shuffle=True, seed=0, limit=arguments.calibration)
    )

    def accuracy(network: nn.Module) -> float:
        return evaluate(network, validation).accuracy

    # A run that is continued needs the same images.
    accuracy.settings = {name: getattr(arguments, name) for name in DATA}  # type: ignore[attr-defined]
    with progress(arguments.steps) as line:
        found = prune(
            model, record.example_inputs(1).to(device(arguments)), keep,
            importance=_importance(arguments, batches),
            fit=fine_tuning(arguments, model, splits, partial(line, done=False)),
            evaluate=accuracy,
            steps=arguments.steps, max_drop=arguments.max_drop,
            calibration=[images.to(device(arguments)) for images, _ in batches],
            reconstruction=arguments.reconstruct, round_to=arguments.round_to,
            exclude=listed(arguments.exclude), limits=limits, measured=arguments.measured,
            branches=arguments.branches, folder=arguments.folder,
            on_step=lambda step: step.step and line(  # the dense network is no step
                f"step {step.step}: {step.macs:.3f} of the MACs, validation accuracy {step.quality:.4f}"
            ),
        )  # fmt: skip
    test = evaluate(found.model, loader(splits.test, splits, 500)).accuracy
    dense = evaluate(model, loader(splits.test, splits, 500)).accuracy
    save_or_rescue(out, found.model.cpu(), record, trust=named_code(arguments))
    title = f"{record.model.label} on {arguments.data}: channels pruned"
    table = _table(title, found, splits, arguments.max_drop, test, dense)
    page = pages.pruning_page(title, found, table, test, dense)
    if arguments.file is not None:
        files = {"dense": arguments.file, "pruned": out}
        page = pages.with_layers(page, files, named_code(arguments))
    print(f"written: {out}")
    finish(table, page.data, Path(f"{out}.json"))
    print(f"written: {pages.write_page(page, f'{out}.html')}")


def _table(
    title: str, found: Pruned, splits: Splits, max_drop: float | None, test: float, dense: float
) -> Table:  # fmt: skip
    """Table of the steps; `test` and `dense` are accuracies on test images, pruned and dense."""
    from snello.lab.reporting import Table, percent
    from snello.lab.training import flag_of

    first, samples = found.steps[0].quality, len(splits.validation)
    rows = tuple(
        (str(s.step), percent(s.macs), percent(s.parameters), percent(s.cut or 0) if s.step else "",
         percent(s.quality or 0),
         flag_of(s.quality or 0, len(splits.classes), samples, dense=first, pruned=s.quality,
                 max_drop=max_drop))
        for s in found.steps
    )  # fmt: skip
    branches = [name for step in found.steps for name in step.branches]
    note = (
        f"Accuracy on {samples} validation images; on {len(splits.test)} test images "
        f"{percent(test)}, dense {percent(dense)}. "
        + (f"Without the branches of {', '.join(branches)}. " if branches else "")
        + (found.stopped or "")
    )
    if flag_of(test, len(splits.classes), len(splits.test)):
        note += "Warning: the pruned network is at chance on the test images."
    header = ("Step", "MACs", "Parameters", "After the cut", "Fine-tuned", "Flag")
    return Table(title, header, rows, note)


def _keep(arguments: argparse.Namespace) -> Keep:
    from snello.pruning.channels import Keep

    shares = {name: getattr(arguments, name) for name in ("macs", "parameters", "channels")}
    if all(share is None for share in shares.values()):
        raise ConfigError(
            "choose the share to keep: --macs=0.5, --parameters=... or --channels=..."
        )
    return Keep(**shares)


def _limits(arguments: argparse.Namespace) -> LayerLimits:
    from snello.pruning import LayerLimits

    return LayerLimits(keep_at_least=arguments.keep_at_least)


def _importance(
    arguments: argparse.Namespace, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> str | ChannelImportance:
    from snello.pruning import channels
    from snello.sensitivity import lobster_scores, serene_scores

    name = arguments.importance
    calibrated: dict[str, Callable[[], ChannelImportance]] = {
        "taylor": lambda: channels.group_taylor(batches),
        "taylor-outputs": lambda: channels.group_taylor(batches, of="outputs"),
        "fisher": lambda: channels.group_fisher(batches),
        "activation": lambda: channels.activation([images for images, _ in batches]),
        "lobster": lambda: channels.neuron_scores(lobster_scores(batches)),
        "serene": lambda: channels.neuron_scores(serene_scores(batches)),
    }
    if name in calibrated:
        return calibrated[name]()
    check_known("--importance", name, (*channels.CHANNEL_IMPORTANCES, *CALIBRATED))
    return str(name)

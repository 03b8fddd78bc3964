"""`snello prune`: remove channels of a trained network, with fine-tuning in between."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from snello.errors import ConfigError, nearest

from ._data import (
    add_data_arguments,
    check_classification,
    load_images,
    require_data,
    warn_if_seen,
)
from ._images import with_classes
from ._inputs import (
    add_model_arguments,
    check_model_file,
    check_one_input,
    device,
    finish,
    read_model,
)
from ._names import channel_importances, complete_with, datasets
from ._own_code import named_code

if TYPE_CHECKING:
    import torch
    from torch import nn

    from snello.lab.datasets import Splits
    from snello.pruning.channels import ChannelImportance, Keep

HELP = "remove the least important channels of a trained network, and fine-tune the smaller network"
EPILOG = (
    "example: snello prune model.pt --data=cifar10 --macs=0.5 --steps=5 --finetune=10 --out=lean.pt"
)
CALIBRATED = ("taylor", "fisher")
"""Importances that are measured on batches: `group_taylor`, `group_fisher`."""
BATCH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    complete_with(
        parser.add_argument("--data", help=f"one of: {', '.join(datasets())}"), datasets()
    )
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
    parser.add_argument(
        "--finetune", type=int, default=0, metavar="EPOCHS", help="epochs of fine-tuning after each step; default: 0"
    )  # fmt: skip
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate; default: 0.01")
    parser.add_argument("--batch-size", type=int, default=128, help="default: 128")
    parser.add_argument(
        "--augment", choices=("none", "crop-flip"), default="crop-flip", help="default: crop-flip"
    )
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="default: 32")
    parser.add_argument(
        "--distil", action="store_true", help="distil from the dense network while fine-tuning"
    )
    parser.add_argument(
        "--reconstruct", nargs="?", const=True, default=False, choices=(True, "biases"),
        metavar="biases", help="fit the layers that used removed channels by least squares before "
        "fine-tuning; 'biases' shifts the biases alone",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, help="largest drop of the validation accuracy: 0.01 is one point"
    )
    parser.add_argument(
        "--round-to", type=int, default=1, metavar="N", help="widths are multiples of N; default: 1"
    )
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
    from snello.lab.reporting import Table, pages, percent, progress
    from snello.lab.training import check_fits, evaluate, image_input
    from snello.search.prune import prune
    from snello.store import check_loadable, save

    pages.check_libraries()
    out = check_model_file(arguments.out)
    keep = _keep(arguments)
    require_data(arguments, arguments.file, "prune needs data to measure on")
    if arguments.calibration < 1:
        raise ConfigError(f"--calibration={arguments.calibration}: at least 1 image is needed")
    model, record = read_model(arguments)
    if arguments.model is not None:
        check_loadable(model, record, str(out), trust=named_code(arguments))
    check_one_input(record, "prune")
    splits = load_images(arguments, record.images, record.input_shape)
    check_classification(splits, "prune")
    record = with_classes(record, splits)
    if record.images is None:  # the network is fitted to the dataset's own normalisation
        record = replace(record, images=image_input(splits))
    model = model.to(device(arguments))
    check_fits(record.model.name, model, splits)
    if arguments.max_drop is not None:
        warn_if_seen(arguments, splits)
    validation = loader(splits.validation, splits, 500)
    batches = list(
        loader(splits.train, splits, BATCH, shuffle=True, seed=0, limit=arguments.calibration)
    )
    with progress(arguments.steps) as line:
        found = prune(
            model, record.example_inputs(1).to(device(arguments)), keep,
            importance=_importance(arguments, batches), fit=fine_tuning(arguments, model, splits),
            evaluate=lambda network: evaluate(network, validation).accuracy,
            steps=arguments.steps, max_drop=arguments.max_drop,
            calibration=[images.to(device(arguments)) for images, _ in batches],
            reconstruction=arguments.reconstruct, round_to=arguments.round_to,
            exclude=[name for name in arguments.exclude.split(",") if name], folder=arguments.folder,
            on_step=lambda step: step.step and line(  # the dense network is no step
                f"step {step.step}: {step.macs:.3f} of the MACs, validation accuracy {step.quality:.4f}"
            ),
        )  # fmt: skip
    test = evaluate(found.model, loader(splits.test, splits, 500)).accuracy
    dense = evaluate(model, loader(splits.test, splits, 500)).accuracy
    save(out, found.model.cpu(), record, trust=named_code(arguments))
    rows = tuple(
        (str(s.step), percent(s.macs), percent(s.parameters), percent(s.cut or 0) if s.step else "",
         percent(s.quality or 0))
        for s in found.steps
    )  # fmt: skip
    note = (
        f"Accuracy on {len(splits.validation)} validation images; on {len(splits.test)} test images "
        f"{percent(test)}, dense {percent(dense)}. " + (found.stopped or "")
    )
    header = ("Step", "MACs", "Parameters", "After the cut", "Fine-tuned")
    title = f"{record.model.label} on {arguments.data}: channels pruned"
    table = Table(title, header, rows, note)
    page = pages.pruning_page(title, found, table, test, dense)
    if arguments.file is not None:
        files = {"dense": arguments.file, "pruned": out}
        page = pages.with_layers(page, files, named_code(arguments))
    pages.write_page(page, f"{out}.html")
    print(f"written: {out}, {out}.html")
    finish(table, page.data, Path(f"{out}.json"))


def _keep(arguments: argparse.Namespace) -> Keep:
    from snello.pruning.channels import Keep

    shares = {name: getattr(arguments, name) for name in ("macs", "parameters", "channels")}
    if all(share is None for share in shares.values()):
        raise ConfigError(
            "choose the share to keep: --macs=0.5, --parameters=... or --channels=..."
        )
    return Keep(**shares)


def _importance(
    arguments: argparse.Namespace, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> str | ChannelImportance:
    from snello.pruning import channels

    name = arguments.importance
    if name in CALIBRATED:
        measure: ChannelImportance = getattr(channels, f"group_{name}")(batches)
        return measure
    if name not in channels.CHANNEL_IMPORTANCES:
        known = (*channels.CHANNEL_IMPORTANCES, *CALIBRATED)
        raise ConfigError(
            f"--importance: there is no {name!r}{nearest(name, known)}; choose one of: "
            f"{', '.join(known)}"
        )
    return str(name)


def fine_tuning(
    arguments: argparse.Namespace, dense: nn.Module, splits: Splits
) -> Callable[[nn.Module], object] | None:
    """Function that fine-tunes a network; None for zero epochs.

    Args:
        arguments: with `finetune`, `lr`, `batch_size`, `distil`, `augment`, `precision`, `seed`.
        dense: the dense network, the teacher of a distillation.
        splits: the dataset.
    """
    from snello.lab.training import FineTuning, finetune
    from snello.wrappers import copied

    settings = FineTuning(
        epochs=arguments.finetune, lr=arguments.lr, batch_size=arguments.batch_size,
        distil=0.5 if arguments.distil else 0.0, augment=arguments.augment,
        precision=arguments.precision, seed=arguments.seed or 0,
    )  # fmt: skip
    if not settings.epochs:
        return None
    teacher = copied(dense).eval() if arguments.distil else None
    return lambda network: finetune(network, splits, settings, teacher=teacher)

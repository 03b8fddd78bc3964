"""`snello sweep`: measure the pruning potential of a trained network."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError
from snello.lab.methods import METHOD_SPECS

from ._data import (
    add_data_arguments,
    add_dataset_argument,
    classifier_images,
    require_data,
    warn_if_seen,
)
from ._images import with_classes
from ._inputs import (
    add_model_arguments,
    check_json_file,
    check_model_file,
    check_named_model,
    check_one_input,
    device,
    finish,
    read_model,
)
from ._names import importances
from ._own_code import named_code
from ._saving import save_or_rescue
from ._words import check_known, listed

if TYPE_CHECKING:
    from torch import nn

    from snello.lab.datasets import Splits
    from snello.pruning import PotentialPoint
    from snello.store import Record

HELP = (
    "accuracy against pruning ratio: one-shot pruning of a trained network by several importances"
)
EPILOG = (
    "example: snello sweep runs/digits/baseline/model.pt --out=sweep.json\n"
    "example: snello sweep model.pt --data=cifar10 --apply=0.8 --out=pruned.pt"
)
SENSITIVITIES = {spec.name: spec.scores for spec in METHOD_SPECS.values() if spec.scores}
"""Sensitivities as scores of a trained network, made from calibration batches."""
RATIOS = "0,0.5,0.7,0.8,0.9,0.95,0.98"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    add_dataset_argument(parser, "; default: that of the recipe beside the model")
    add_data_arguments(parser, judged=True)
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
        "--apply", type=float, metavar="SHARE", help="also prune this share by the best importance, and "
        "write the model to --out",
    )  # fmt: skip
    parser.add_argument(
        "--out", help="the JSON file to write, next to the plot; default: sweep.json; with --apply the "
        "model file; default: pruned.pt",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace existing files")


def run(arguments: argparse.Namespace) -> None:
    """Measure the potential, show the table, write JSON and plot, and the pruned model if asked."""
    out, report = _files(arguments)
    from snello.lab.reporting import Table, busy, pages, percent, plot_potential

    pages.check_libraries()
    ratios = _ratios(arguments.ratios, arguments.apply)
    subject = _subject(arguments, out)
    with busy("pruning and measuring"):
        points = _points(arguments, subject, ratios)
    curves: dict[str, dict[float, list[float]]] = {}
    for point in points:
        curves.setdefault(point.method, {})[point.ratio] = [point.value]
    header = ("Importance", *(percent(ratio, 1) for ratio in ratios))
    rows = tuple(
        (m, *(percent(curve[ratio][0]) for ratio in ratios)) for m, curve in curves.items()
    )
    facts = _facts(arguments, subject)
    note = (
        f"Accuracy on {facts['images']} validation images after pruning a share of the {arguments.granularity}s in "
        f"one shot, without fine-tuning; scope {arguments.scope}, the head unpruned, {facts['device']}."
    )
    title = f"{subject.record.model.label} on {arguments.data}: pruning potential"
    if out is not None:
        facts["applied"] = applied = _apply(arguments, subject, points, out)
    table = Table(title, header, rows, note)
    page = pages.sweep_page(title, facts, points, table, arguments.granularity)
    finish(table, page.data, report)
    print(f"written: {pages.write_page(page, report.with_suffix('.html'))}")
    axis = f"{arguments.granularity}s left [%]"
    print(f"written: {plot_potential(curves, Path(f'{report}.png'), title, xlabel=axis)}")
    if out is not None:
        print(
            f"written: {out}: {percent(applied.ratio)} of the {arguments.granularity}s pruned by "
            f"{applied.method}, validation accuracy {percent(applied.value)}; next: snello simplify {out}"
        )


def _files(arguments: argparse.Namespace) -> tuple[Path | None, Path]:
    """The model file to write, None without `--apply`, and the JSON file, checked before any work.

    Raises:
        ConfigError: if one exists and `--force` is not given, or for the suffix of another format.
        OutputError: if one cannot be written.
    """
    if arguments.apply is None:
        out, report = None, Path(arguments.out or "sweep.json")
    else:
        out = Path(arguments.out or "pruned.pt")
        report = Path(f"{out}.json")
    files = [
        report,
        Path(f"{report}.png"),
        report.with_suffix(".html"),
        *([] if out is None else [out]),
    ]
    existing = [file for file in files if file.is_file()]
    if existing and not arguments.force:
        raise ConfigError(f"{existing[0]} exists: choose another --out, or replace it with --force")
    if out is not None:
        check_model_file(arguments, out)
    return out, check_json_file(arguments, report)


@dataclass(frozen=True)
class _Subject:
    model: nn.Module
    record: Record
    splits: Splits
    calibration: list[Any]

    def accuracy(self, pruned: nn.Module) -> float:
        """Accuracy on the validation images."""
        from snello.lab.datasets import loader
        from snello.lab.training import evaluate

        return evaluate(pruned, loader(self.splits.validation, self.splits, 500)).accuracy


def _subject(arguments: argparse.Namespace, out: Path | None) -> _Subject:
    """The model, to be written to `out` if that is given, and the images to measure on.

    Raises:
        ConfigError: without a dataset.
        ModelError: if the model cannot be read, or the images do not fit it.
        DataError: if the dataset is missing.
    """
    from snello.lab.datasets import loader

    model, record = read_model(arguments)
    if out is not None:
        check_named_model(arguments, model, record, out)
    check_one_input(record, "sweep")
    require_data(arguments, arguments.file, "sweep needs data to measure on")
    model = model.to(device(arguments))
    splits = classifier_images(arguments, model, record, "sweep")
    warn_if_seen(arguments, splits)
    batches = loader(splits.train, splits, 100, limit=arguments.calibration)
    calibration = [(images.to(record.dtype), labels) for images, labels in batches]
    return _Subject(model, with_classes(record, splits), splits, calibration)


def _points(
    arguments: argparse.Namespace, subject: _Subject, ratios: list[float]
) -> tuple[PotentialPoint, ...]:
    from snello.pruning import pruning_potential

    return pruning_potential(
        subject.model, subject.accuracy, _importances(arguments, subject.calibration), ratios,
        granularity=arguments.granularity, scope=arguments.scope,
    )  # fmt: skip


def _facts(arguments: argparse.Namespace, subject: _Subject) -> dict[str, Any]:
    return {
        "model": subject.record.model.name, "data": arguments.data, "part": "validation",
        "images": len(subject.splits.validation), "granularity": arguments.granularity,
        "scope": arguments.scope, "calibration": arguments.calibration,
        "device": str(device(arguments)),
    }  # fmt: skip


def _apply(
    arguments: argparse.Namespace,
    subject: _Subject,
    points: tuple[PotentialPoint, ...],
    out: Path,
) -> PotentialPoint:
    """Prune by the importance with the highest accuracy at `--apply`, and write the model."""
    from snello.pruning import Pruner, Ratio

    there = [point for point in points if point.ratio == arguments.apply]
    # Random scores are a baseline, not a choice.
    best = max([p for p in there if p.method != "random"] or there, key=lambda p: p.value)
    pruner = Pruner(
        subject.model, None, granularity=arguments.granularity, scope=arguments.scope,
        importance=_importances(arguments, subject.calibration)[best.method],
        normalise="auto", amount=Ratio(best.ratio),
    )  # fmt: skip
    pruner.prune()
    pruner.remove()
    value = subject.accuracy(subject.model)
    save_or_rescue(out, subject.model.cpu(), subject.record, trust=named_code(arguments))
    return replace(best, value=value)


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
    names = listed(arguments.importances)
    for name in names:
        check_known("--importances", name, known)
    return {name: known[name] for name in names}


def _ratios(text: str, applied: float | None) -> list[float]:
    """The ratios to measure, with the one to apply."""
    try:
        ratios = list(dict.fromkeys(map(float, text.split(","))))  # each is measured once
    except ValueError as error:
        raise ConfigError(
            f"--ratios={text!r} must be numbers separated by commas, such as {RATIOS}"
        ) from error
    if not all(0 <= ratio < 1 for ratio in ratios):
        raise ConfigError(f"--ratios={text!r}: every ratio must be in [0, 1)")
    if applied is None:
        return ratios
    if not 0 < applied < 1:
        raise ConfigError(f"--apply={applied}: the share to prune must be between 0 and 1")
    return sorted({*ratios, applied})

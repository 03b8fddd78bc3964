"""``snello evaluate``: accuracy of models and exported files on the same images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError

from ._data import add_data_arguments, load_images
from ._inputs import check_writable, device, finish, seed
from ._names import complete_with, datasets, suffixes
from ._own_code import add_own_code_argument, own_code

if TYPE_CHECKING:
    from torch import nn

    from snello.lab.datasets import Splits
    from snello.lab.training import Answers
    from snello.store import ImageInput

HELP = "score model files, bitstreams and exported files side by side on the same images"
EPILOG = (
    "example: snello evaluate dense.pt lean.pt lean.onnx lean-int8.onnx --data=cifar10\n"
    "Each file is fed as its record or metadata says; the first one is what the others are compared with."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("files", nargs="+", help=f"files ({', '.join(suffixes())})")
    names = datasets()
    complete_with(parser.add_argument("--data", help=f"one of: {', '.join(names)}"), names)
    add_data_arguments(parser)
    parser.add_argument(
        "--part", choices=("test", "validation", "train"), default="test", help="default: test"
    )
    parser.add_argument("--batch", type=int, default=250, help="images per batch; default: 250")
    add_own_code_argument(parser)
    parser.add_argument(
        "--out", default="evaluate.json", help="the JSON file to write; default: evaluate.json"
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate each file, show, write."""
    if not arguments.data:
        raise ConfigError("evaluate needs images: name a dataset with --data, as --data=cifar10")
    if arguments.batch < 1:
        raise ConfigError(f"--batch={arguments.batch}: choose at least 1")
    out = check_writable(arguments.out)
    from snello.lab.reporting import Table, progress

    seed(arguments)
    results: list[dict[str, Any]] = []
    first: Answers | None = None
    with progress(len(arguments.files)) as line:
        for path in map(Path, arguments.files):
            found, result = _score(path, arguments)
            first = first or found
            results.append(result | _against(found, first))
            line(f"{path}: accuracy {result['accuracy']:.4f}")
    header = (
        "File", "Size\n[MB]", "Accuracy", "Loss", "Points", "Same\nanswer", "Lost", "Won",
    )  # fmt: skip
    note = (
        f"{results[0]['images']} images of {arguments.data}, part {arguments.part}. Points, same answer, images "
        f"lost and won: against {arguments.files[0]}."
    )
    rows = tuple(map(_row, results))
    finish(
        Table(f"Accuracy on {arguments.data}", header, rows, note),
        {"data": arguments.data, "part": arguments.part, "files": results},
        out,
    )


def _score(path: Path, arguments: argparse.Namespace) -> tuple[Answers, dict[str, Any]]:
    from snello.deploy import file_bytes
    from snello.lab.datasets import loader
    from snello.lab.training import answers, check_fits, image_input

    model, shape, images = _opened(path, arguments)
    splits = load_images(arguments, images, _size(arguments, shape))
    _check_shape(path, splits, shape)
    check_fits(str(path), model, splits)
    batches = loader(getattr(splits, arguments.part), splits, arguments.batch)
    found = answers(model, batches)
    return found, {
        "file": str(path),
        "bytes": file_bytes(path),
        "images": len(found.labels),
        "accuracy": float(found.right.double().mean()),
        "loss": found.loss,
        "input": image_input(splits).to_dict(),
    }


def _opened(
    path: Path, arguments: argparse.Namespace
) -> tuple[nn.Module, tuple[int, ...], ImageInput | None]:
    """The model of a file, the shape of one image, and how pictures become images."""
    from snello.deploy import FORMATS, FileModel
    from snello.store import ImageInput, load

    if path.suffix not in FORMATS:
        model, record = load(path, trust=own_code(arguments))
        return model.to(device(arguments)), tuple(record.input_shape), record.images
    format = FORMATS[path.suffix]
    file = FileModel(path)
    inputs = format.inputs_of(path)
    if len(inputs) != 1:
        raise ConfigError(f"{path} takes {len(inputs)} inputs; images are one")
    facts = format.metadata(path)
    images = ImageInput.from_dict(facts) if "mean" in facts else None
    return file, tuple(inputs[0].shape[1:]), images


def _size(arguments: argparse.Namespace, shape: tuple[int, ...]) -> int | None:
    from snello.lab.datasets import FIXED_SIZE

    if arguments.image_size is not None or arguments.data in FIXED_SIZE or not shape:
        return int(arguments.image_size) if arguments.image_size is not None else None
    return shape[-1]


def _check_shape(path: Path, splits: Splits, shape: tuple[int, ...]) -> None:
    if splits.input_shape != shape:
        raise ConfigError(
            f"{path} takes images of {shape}, those of {splits.name} are {splits.input_shape}: choose another "
            "--data or --image-size"
        )
    if splits.task != "classification":
        raise ConfigError(f"evaluate compares classifiers; {splits.name} is a {splits.task}")


def _against(found: Answers, first: Answers) -> dict[str, Any]:
    """Answers beside those of the first file."""
    return {
        "points": 100 * float(found.right.double().mean() - first.right.double().mean()),
        "same": float((found.predicted == first.predicted).double().mean()),
        "lost": int((first.right & ~found.right).sum()),
        "won": int((found.right & ~first.right).sum()),
    }


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    from snello.lab.reporting import megabytes, percent

    return (
        result["file"], megabytes(result["bytes"]), percent(result["accuracy"]), f"{result['loss']:.4f}",
        f"{result['points']:+.2f}", percent(result["same"]), str(result["lost"]), str(result["won"]),
    )  # fmt: skip

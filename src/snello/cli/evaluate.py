"""`snello evaluate`: accuracy of models and exported files on the same images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError, ModelError

from ._data import (
    add_data_arguments,
    add_dataset_argument,
    batches_of,
    load_images,
    require_data,
)
from ._inputs import check_json_file, check_one_input, device, finish, seed, warn
from ._names import suffixes
from ._own_code import add_own_code_argument, own_code

if TYPE_CHECKING:
    from torch import nn

    from snello.lab.datasets import Splits
    from snello.lab.reporting import Table
    from snello.lab.training import Answers
    from snello.store import ImageInput

PARTS = ("test", "validation", "train")
HELP = "score model files, bitstreams and exported files side by side on the same images"
EPILOG = (
    "example: snello evaluate dense.pt lean.pt lean.onnx lean-int8.onnx --data=cifar10\n"
    "The images of each file are preprocessed as its record or metadata says, else as the first file\n"
    "with a normalisation says. All files are compared with the first one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("files", nargs="+", help=f"files ({', '.join(suffixes())})")
    add_dataset_argument(parser, "; default: that of the recipe beside the first file")
    add_data_arguments(parser)
    parser.add_argument(
        "--part", choices=(*PARTS, "all"), default="test",
        help="part of the dataset to score on; all: the whole folder; default: test",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=250, help="images per batch; default: 250")
    add_own_code_argument(parser)
    parser.add_argument(
        "--out", default="evaluate.json", help="the JSON file to write; default: evaluate.json"
    )


def run(arguments: argparse.Namespace) -> None:
    """Score each file on the images, show the table and write JSON."""
    require_data(arguments, arguments.files[0], "evaluate needs images")
    if arguments.batch < 1:
        raise ConfigError(f"--batch={arguments.batch}: choose at least 1")
    for path in arguments.files:
        if not Path(path).exists():
            raise ConfigError(f"there is no file {path}")
    out = check_json_file(arguments, arguments.out)
    from snello.lab.reporting import progress

    seed(arguments)
    results: list[dict[str, Any]] = []
    first: Answers | None = None
    known = _Known()
    with progress(len(arguments.files), "file") as line:
        for path in map(Path, arguments.files):
            found, result = _score(path, arguments, known)
            first = first or found
            results.append(result | _against(results, result, found, first))
            line(f"{path}: {_metric(result)} {result[_metric(result)]:.4f}")
    finish(
        _table(arguments, results),
        {"data": arguments.data, "part": arguments.part, "files": results},
        out,
    )


@dataclass
class _Known:
    """Results shared by all files.

    Attributes:
        images: preprocessing of the first file that has one.
        file: that file.
        splits: datasets that were read, by the size of their images.
    """

    images: ImageInput | None = None
    file: Path | None = None
    splits: dict[tuple[int | None, bool], Splits] = field(default_factory=dict)

    def or_that_of(self, path: Path, images: ImageInput | None, given: bool) -> ImageInput | None:
        """The preprocessing of a file, else the known one, with a note unless another is given."""
        if images is None and self.images is not None and not given:
            warn(f"{path} has no normalisation: that of {self.file} is used", "note")
        elif self.images is None:
            self.images, self.file = images, path
        return images or self.images


def _score(
    path: Path, arguments: argparse.Namespace, known: _Known
) -> tuple[Answers | None, dict[str, Any]]:
    """Answers of a classifier, None for segmentation; and its scores."""
    from snello.deploy import file_bytes
    from snello.lab.training import answers, check_fits, evaluate_on, image_input

    model, shape, preprocessing = _opened(path, arguments)
    preprocessing = known.or_that_of(path, preprocessing, given=arguments.mean is not None)
    splits = load_images(arguments, preprocessing, shape, known.splits)
    check_fits(str(path), model, splits)
    parts = PARTS if arguments.part == "all" else (arguments.part,)
    images = [getattr(splits, part) for part in parts]
    facts = {
        "file": str(path), "bytes": file_bytes(path), "images": sum(map(len, images)),
        "input": image_input(splits).to_dict() | {"input_shape": list(shape)},
    }  # fmt: skip
    batches = chain(*(batches_of(part, splits, arguments.batch) for part in images))
    if splits.task == "segmentation":
        overlap = evaluate_on(splits, model, batches)
        return None, facts | {"mean_iou": overlap.accuracy, "loss": overlap.loss}
    found = answers(model, batches)
    return found, facts | {"accuracy": float(found.right.double().mean()), "loss": found.loss}


def _opened(
    path: Path, arguments: argparse.Namespace
) -> tuple[nn.Module, tuple[int, ...], ImageInput | None]:
    """The model of a file, the shape of one image, and the preprocessing in the file.

    Raises:
        ConfigError: if it takes several inputs.
        ModelError: if it cannot be read.
    """
    from snello.deploy import FORMATS, FileModel
    from snello.store import ImageInput, load

    if path.suffix not in FORMATS:
        model, record = load(path, trust=own_code(arguments))
        check_one_input(record, "evaluate")
        return model.to(device(arguments)), tuple(record.input_shape), record.images
    format = FORMATS[path.suffix]
    file = FileModel(path)
    inputs = format.inputs_of(path)
    if len(inputs) != 1:
        raise ConfigError(
            f"{path} takes {len(inputs)} inputs; evaluate measures models of one image"
        )
    facts = format.metadata(path)
    try:
        images = ImageInput.from_dict(facts) if "mean" in facts else None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return file, tuple(inputs[0].shape[1:]), images


def _metric(result: dict[str, Any]) -> str:
    return "accuracy" if "accuracy" in result else "mean_iou"


def _against(
    results: list[dict[str, Any]],
    result: dict[str, Any],
    found: Answers | None,
    first: Answers | None,
) -> dict[str, Any]:
    """Differences of a file's scores and answers from those of the first file."""
    metric = _metric(result)
    points = {"points": 100 * (result[metric] - (results[0] if results else result)[metric])}
    if found is None or first is None:
        return points
    return points | {
        "same": float((found.predicted == first.predicted).double().mean()),
        "lost": int((first.right & ~found.right).sum()),
        "won": int((found.right & ~first.right).sum()),
    }


def _table(arguments: argparse.Namespace, results: list[dict[str, Any]]) -> Table:
    from snello.lab.reporting import Table, megabytes, percent

    segments = _metric(results[0]) == "mean_iou"
    header: tuple[str, ...] = (
        "File",
        "Size\n[MB]",
        "Mean IoU" if segments else "Accuracy",
        "Loss",
        "Points",
    )
    rows: list[tuple[str, ...]] = [
        (r["file"], megabytes(r["bytes"]), percent(r[_metric(r)]), f"{r['loss']:.4f}", f"{r['points']:+.2f}")
        for r in results
    ]  # fmt: skip
    compared = "Points: difference"
    if not segments:
        header = (*header, "Same\nanswer", "Lost", "Won")
        rows = [
            (*row, percent(r["same"]), str(r["lost"]), str(r["won"]))
            for row, r in zip(rows, results, strict=True)
        ]
        compared = "Points, same answer, images lost and won: compared"
    note = (
        f"{results[0]['images']} images of {arguments.data}, part {arguments.part}. {compared} "
        f"{'from' if segments else 'with'} {arguments.files[0]}."
    )
    return Table(f"{header[2]} on {arguments.data}", header, tuple(rows), note)

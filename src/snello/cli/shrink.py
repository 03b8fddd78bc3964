"""`snello shrink`: the cheapest network within a bound on the drop of its accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError
from snello.files import check_no_folder

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
    check_named_model,
    check_one_input,
    check_output,
    finish,
    read_model,
    warn,
)
from ._names import channel_importances, complete_with
from ._own_code import named_code
from ._samples import read_samples
from ._saving import save_or_rescue
from ._words import check_known, listed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snello.lab.datasets import Splits
    from snello.search.shrink import Shrunk
    from snello.store import Record

HELP = "find the cheapest network, for a device, whose accuracy stays within a bound"
EPILOG = (
    "example: snello shrink model.pt --data=cifar10 --max-drop=0.01 --minimise=bytes --out=lean.snello\n"
    "         snello shrink model.pt --data=cifar10 --max-drop=0.01 --minimise=latency "
    "--device=profile.json"
)
DEVICE = "profile"
"""`--device` names the profile of a device to plan for; the search computes on the CPU."""
COSTS = ("latency", "macs", "bytes", "memory")
LEVERS = ("channels", "weights", "int8", "nnc")
BATCH = 250
SUFFIXES = (".pt", ".onnx", ".snello")
"""Suffixes of the file in float32, in int8 and as a bitstream."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    add_dataset_argument(parser)
    add_data_arguments(parser, judged=True)
    parser.add_argument(
        "--samples", metavar="FILE.npz", help="instead of --data: an array per input of the model, in order, and "
        "'labels'; without labels, the answers of the dense network count as right",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, default=0.01, help="largest drop of the validation accuracy, for "
        "its upper limit at 95 %% confidence; default: 0.01, one point",
    )  # fmt: skip
    parser.add_argument(
        "--minimise", choices=COSTS, default="latency", help="the cost; default: latency, of one "
        "input in ONNX Runtime on the CPU",
    )  # fmt: skip
    parser.add_argument(
        "--device", metavar="PROFILE", help="profile of another device, which snello bench-device --profile "
        "measures; default: this machine",
    )  # fmt: skip
    parser.add_argument(
        "--allow", default=",".join(LEVERS), help="levers, comma-separated; default: "
        f"{','.join(LEVERS)}; branches, too, if residual branches may be removed whole",
    )  # fmt: skip
    names = channel_importances()
    complete_with(
        parser.add_argument("--importance", help=f"fisher (default), {', '.join(names)}"), names
    )
    for option, default, text in (
        ("--validation-images", 5000, "number of validation images, at most"),
        (
            "--calibration",
            512,
            "number of training images for sensitivities, statistics and ranges",
        ),
        ("--trials", 8, "number of candidates per precision, at most"),
        ("--threads", 1, "threads of ONNX Runtime"),
    ):
        parser.add_argument(option, type=int, default=default, help=f"{text}; default: {default}")
    add_finetuning_arguments(parser, "of each candidate")
    parser.add_argument("--round-to", type=int, metavar="N", help="widths are multiples of N")
    parser.add_argument(
        "--exclude", default="", help="dimensions to leave as they are, comma-separated"
    )
    parser.add_argument(
        "--folder", help="folder of the log and the networks: an interrupted search goes on there, and several "
        "processes with the same folder share one",
    )  # fmt: skip
    parser.add_argument(
        "--out", default="lean", help="the file to write, without suffix: .pt (float32), .onnx "
        "(int8) or .snello (bitstream) is added; default: lean",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Search, report each candidate, and write the network and its page."""
    from snello.lab.reporting import pages, shrink_table
    from snello.search.shrink import shrink

    pages.check_libraries()
    out = _stem(arguments)
    check_image_counts(arguments, "calibration")
    check_drop(arguments)
    if not arguments.samples:
        require_data(arguments, arguments.file, "shrink needs data to measure on")
    model, record = read_model(arguments)
    check_named_model(arguments, model, record, out)
    data = (_from_samples if arguments.samples else _from_images)(arguments, model, record)
    levers: Any = listed(arguments.allow)  # the search checks their names
    found = shrink(
        model, record.inputs(1), data.right, fit=data.fit, max_drop=arguments.max_drop,
        minimise=arguments.minimise, device=arguments.device, allow=levers,
        calibration=data.calibration, importance=_importance(arguments),
        round_to=arguments.round_to, exclude=listed(arguments.exclude), trials=arguments.trials,
        threads=arguments.threads, folder=arguments.folder, on_candidate=_say,
    )  # fmt: skip
    record = data.record
    path = _write(arguments, found, record, out, data.calibration)
    title = f"{record.model.label}: the least {arguments.minimise} within a drop of {arguments.max_drop:g}"
    table = shrink_table(title, found, data.tested(found))
    page = pages.shrink_page(title, found, table)
    page = replace(page, data=page.data | {"files": _files(arguments, found, path)})
    if arguments.file is not None:
        page = pages.with_layers(
            page, {"dense": arguments.file, "chosen": path}, named_code(arguments)
        )
    print(f"written: {path}")
    finish(table, page.data, Path(f"{path}.json"))
    print(f"written: {pages.write_page(page, f'{path}.html')}")


def _stem(arguments: argparse.Namespace) -> Path:
    """The file to write as a model file; the suffix of another precision is put in its place.

    Raises:
        ConfigError: if one of the files is the one that is read.
        OutputError: if the file cannot be written.
    """
    given = Path(arguments.out)
    check_no_folder(given)
    name = given.stem if given.suffix in SUFFIXES else given.name
    for suffix in SUFFIXES:
        check_output(arguments, given.with_name(name + suffix))
    return given.with_name(f"{name}.pt")


@dataclass(frozen=True)
class _Data:
    """The data to search with.

    Attributes:
        right: which samples a network classifies correctly.
        fit: fine-tunes a network; None to leave the candidates as they are.
        calibration: batches of inputs.
        record: record of the model, with what the data say of its inputs.
        tested: the drop of the result on samples that the search did not see, in words.
    """

    right: Callable[[nn.Module], Tensor]
    fit: Callable[[nn.Module], object] | None
    calibration: list[Any]
    record: Record
    tested: Callable[[Shrunk], str]


def _from_images(arguments: argparse.Namespace, model: nn.Module, record: Record) -> _Data:
    """Evaluation and calibration on a dataset."""
    from snello.lab.datasets import loader
    from snello.lab.training import answers

    check_image_counts(arguments, "validation_images")
    check_one_input(record, "shrink with --data (--samples takes several)")
    splits = classifier_images(arguments, model, record, "shrink")
    record = fitted(record, splits)
    warn_if_seen(arguments, splits)
    validation = list(loader(splits.validation, splits, BATCH, limit=arguments.validation_images))
    warn_if_few(sum(len(labels) for _, labels in validation), arguments.max_drop)
    batches = loader(splits.train, splits, BATCH, shuffle=True, seed=0, limit=arguments.calibration)

    def right(network: nn.Module) -> Tensor:
        return answers(network, validation).right

    names = ("data", "data_path", "image_size", "validation_path", "calibration", "split")
    given = {name: getattr(arguments, name, None) for name in names}
    images = record.images and asdict(record.images)
    right.settings = {**given, "images": images}  # type: ignore[attr-defined]  # to resume with
    return _Data(
        right,
        fine_tuning(arguments, model, splits, partial(print, flush=True)),
        [images for images, _ in batches],
        record,
        lambda found: _tested(found, model, splits),
    )


def _from_samples(arguments: argparse.Namespace, model: nn.Module, record: Record) -> _Data:
    """Evaluation and calibration on the samples of a file."""
    for option in ("data", "validation_path", "finetune", "distil", "distil_features"):
        if getattr(arguments, option):
            raise ConfigError(
                f"--samples excludes --{option.replace('_', '-')}: the file has no training and no "
                "validation part"
            )
    from snello.files import sha256_of

    samples = read_samples(arguments.samples, record)
    labels = samples.answers(model) if samples.labels is None else samples.labels
    if samples.labels is None:
        warn("no labels in the file: the share of unchanged answers is the quality", "note")
    warn_if_few(len(labels), arguments.max_drop)

    def right(network: nn.Module) -> Tensor:
        return (samples.answers(network) == labels).double()

    digest = sha256_of(arguments.samples)
    right.settings = {"samples": digest, "calibration": arguments.calibration}  # type: ignore[attr-defined]
    return _Data(right, None, samples.drawn(arguments.calibration), record, lambda _: "")


def _tested(found: Shrunk, dense: nn.Module, splits: Splits) -> str:
    """The drop on test images, which the search did not see."""
    from snello.lab.datasets import loader
    from snello.lab.training import answers
    from snello.search.shrink import Judge

    if found.precision == "int8":
        return ""  # the file is measured by snello evaluate
    batches = list(loader(splits.test, splits, BATCH))
    verdict = Judge(lambda network: answers(network, batches).right, dense)(found.deployed())
    return (
        f"On {len(splits.test)} test images: accuracy {verdict.value:.4f}, {verdict.drop:+.4f} below the "
        f"dense network's, at most {verdict.limit:+.4f} at 95 % confidence."
    )  # fmt: skip


def _write(
    arguments: argparse.Namespace, found: Shrunk, record: Record, out: Path,
    calibration: list[Any],
) -> Path:  # fmt: skip
    """Write the network in its precision; the path."""
    from snello.deploy import export_int8

    trust = named_code(arguments)
    if found.precision == "nnc":
        path = out.with_suffix(".snello")
        return save_or_rescue(path, found.model.cpu(), record, settings=found.settings, trust=trust)
    if found.precision == "int8":
        path = out.with_suffix(".onnx")
        export_int8(found.model.cpu(), record.inputs(1), path, calibration)
        print(f"written: {save_or_rescue(out, found.model.cpu(), record, trust=trust)} (float32)")
        return path
    return save_or_rescue(out, found.model.cpu(), record, trust=trust)


def _files(arguments: argparse.Namespace, found: Shrunk, path: Path) -> list[dict[str, str]]:
    """Files of the dense and the chosen candidate, by which a kit's times are assigned to them."""
    from snello.files import sha256_of

    given = [] if arguments.file is None else [(found.dense, arguments.file)]
    return [
        {"key": candidate.key, "file": Path(file).name, "sha256": sha256_of(file)}
        for candidate, file in (*given, (found.chosen, path))
    ]


def _say(candidate: Any) -> None:
    from snello.lab.reporting import number

    if candidate.why:
        text = candidate.why
    else:
        text = f"cost {number(candidate.cost)}, " if candidate.cost is not None else ""
        text += f"drop {candidate.drop:+.4f}, at most {candidate.limit:+.4f}"
        text += "" if candidate.passed else ", beyond the bound"
    print(f"{candidate.precision}, {len(candidate.widths)} widths: {text}", flush=True)


def _importance(arguments: argparse.Namespace) -> str | None:
    if arguments.importance in (None, "fisher"):
        return None
    check_known("--importance", arguments.importance, ("fisher", *channel_importances()))
    return str(arguments.importance)

"""`snello export`: convert a model file to the format of another runtime."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.files import check_no_folder

from ._calibration import CALIBRATION, add_calibration_arguments, calibration, warn_random
from ._inputs import (
    add_model_arguments,
    check_one_input,
    check_output,
    finish,
    read_model,
    refuse_without,
)
from ._names import complete_with, formats
from ._words import check_known

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snello.deploy import Format
    from snello.store import Record

HELP = "export a model to ONNX (float32 or int8), torch.export, ExecuTorch or OpenVINO, verified against PyTorch"
EPILOG = (
    "example: snello export lean.pt --out=lean.onnx\n"
    "example: snello export lean.pt --format=onnx-int8 --data=mnist --out=lean-int8.onnx"
)
INT8 = "onnx-int8"
REDUCE_RANGE = ("--reduce-range", "--no-reduce-range")
"""Name of the variant that needs calibration data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    names = (*formats(), INT8)
    action = parser.add_argument(
        "--format", help=f"one of {', '.join(names)}; default: that of the suffix of --out, or onnx"
    )
    complete_with(action, names)
    parser.add_argument(
        "--out",
        help="the file to write; default: the model's name with -int8 and the suffix of the format",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="fixed batch size of an executorch program; default: 1"
    )  # fmt: skip
    parser.add_argument(
        "--reduce-range",
        action=argparse.BooleanOptionalAction,
        help="int8 weights in 7 bits, as x86 CPUs without VNNI need; default: as this machine needs",
    )
    add_calibration_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export a model and verify the file against PyTorch."""
    from snello.lab.reporting import Table, busy, megabytes, percent

    format, int8 = _format(arguments), arguments.format == INT8
    if not int8:
        refuse_without(arguments, "--format=onnx-int8", *REDUCE_RANGE, *CALIBRATION)
    if format.any_batch:
        refuse_without(arguments, "--format=executorch", "--batch")
    model, record = read_model(arguments)
    stem = Path(arguments.file or "model").stem
    out = check_output(
        arguments, arguments.out or f"{stem}{'-int8' if int8 else ''}{format.suffix}"
    )
    with busy("exporting"):
        write = _int8 if int8 else _float32
        result = write(format, model, record, out, arguments)
    facts = record.image_facts()
    saved = bool(facts) and format.add_metadata(out, facts)
    result["bytes"] = format.size(out)
    header = ["File", "Format", "Size [MB]"]
    row = [str(out), INT8 if int8 else format.name, megabytes(result["bytes"])]
    note = "Verified: outputs equal to PyTorch's within 1e-4 of the largest."
    if int8:
        header += ["Difference\nto float32", "Mean\ndifference"]
        row += [percent(result[key]) for key in ("difference", "mean_difference")]
        if result["agreement"] is not None:
            header.append("Same\nlargest output")
            row.append(percent(result["agreement"]))
        note = f"Calibrated and compared on {result['samples']} samples of {result['calibration']}."
        if result["reduce_range"] and arguments.reduce_range is None:
            note += (
                " Weights have 7 bits: this CPU has no VNNI. For one that has, or an ARM CPU, export "
                "with --no-reduce-range."
            )
    if saved:
        note += " Normalisation, colour order and classes are in its metadata."
    finish(
        Table(record.model.label, tuple(header), (tuple(row),), note), result, Path(f"{out}.json")
    )


def _format(arguments: argparse.Namespace) -> Format:
    """The format chosen by `--format`, else by the suffix of `--out`.

    Raises:
        ConfigError: for an unknown name or suffix.
    """
    from snello.deploy import FORMATS, format_of

    if arguments.out is not None:
        check_no_folder(arguments.out)  # before its suffix, which folders have none of
    if arguments.format is None:
        return format_of(arguments.out or "model.onnx")
    known = {format.name: format for format in FORMATS.values()}
    known[INT8] = known["onnx"]
    check_known("--format", arguments.format, known)
    return known[arguments.format]


def _float32(
    format: Format, model: nn.Module, record: Record, out: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    from snello.deploy import file_bytes

    inputs = record.inputs(2 if format.any_batch else arguments.batch)
    return {"file": str(format.export(model, inputs, out)), "bytes": file_bytes(out)}


def _calibration(
    record: Record, arguments: argparse.Namespace
) -> tuple[list[tuple[Tensor, ...]], str]:
    if record.further:
        if arguments.data is not None:
            check_one_input(record, "--data")
        warn_random()
        return [record.inputs(arguments.samples)], "random inputs"
    batches, where = calibration(record.input_shape, arguments, record.images)
    return [(images.to(record.dtype),) for images in batches], where


def _int8(
    format: Format, model: nn.Module, record: Record, out: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    from snello.deploy import export_int8

    data, where = _calibration(record, arguments)
    found = export_int8(model, record.inputs(), out, data, reduce_range=arguments.reduce_range)
    return {
        "file": str(found.path),
        "bytes": found.bytes,
        "difference": found.difference,
        "mean_difference": found.mean_difference,
        "agreement": found.agreement,
        "reduce_range": found.reduce_range,
        "samples": found.samples,
        "calibration": where,
    }

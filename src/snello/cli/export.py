"""``snello export``: a model file becomes a file of another runtime."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snello import export as to_onnx
from snello.deploy import Quantised, export_executorch, export_int8, export_openvino, export_program
from snello.store.modelfile import Record

from ._calibration import add_calibration_arguments, calibration
from ._inputs import add_model_arguments, check_writable, finish, read_model

HELP = "export a model to ONNX (float32 or int8), torch.export, ExecuTorch or OpenVINO, verified against PyTorch"
EPILOG = (
    "example: snello export lean.pt --out=lean.onnx\n"
    "example: snello export lean.pt --format=onnx-int8 --data=mnist --out=lean-int8.onnx"
)

Exporter = Callable[[nn.Module, Tensor, Path], Path]
FORMATS: dict[str, tuple[str, Exporter | None]] = {
    "onnx": ("model.onnx", to_onnx),
    "onnx-int8": ("model-int8.onnx", None),  # alone in needing data
    "torch-export": ("model.pt2", export_program),
    "executorch": ("model.pte", export_executorch),
    "openvino": ("model.xml", export_openvino),
}
"""Name -> default file, and the function that writes it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument(
        "--out", help="the file to write; default: model.onnx, model-int8.onnx, model.pt2 ..."
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="batch size of an executorch program, which has no other; default: 1"
    )  # fmt: skip
    add_calibration_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export and verify."""
    from snello.lab.reporting import Table, busy, megabytes, percent

    default, exporter = FORMATS[arguments.format]
    out = check_writable(arguments.out or default)
    model, record = read_model(arguments)
    with busy("exporting"):
        if exporter is None:
            result = _int8(model, record, out, arguments)
        else:
            # ExecuTorch plans its memory for one batch size; the others take any.
            batch = arguments.batch if arguments.format == "executorch" else 2
            path = exporter(model, record.example_inputs(batch), out)
            result = {"file": str(path), "bytes": _bytes(path)}
    header, row = (
        ["File", "Format", "Size [MB]"],
        [str(out), arguments.format, megabytes(result["bytes"])],
    )
    note = "Verified: outputs equal to PyTorch's within 1e-4 of the largest."
    if exporter is None:
        header += ["Difference\nto float32", "Mean\ndifference", "Same\nlargest output"]
        row += [percent(result[key]) for key in ("difference", "mean_difference", "agreement")]
        note = f"Calibrated and compared on {result['samples']} samples of {result['calibration']}."
    finish(
        Table(record.model.name, tuple(header), (tuple(row),), note), result, Path(f"{out}.json")
    )


def _int8(
    model: nn.Module, record: Record, out: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    found_data, where = calibration(record.input_shape, arguments)
    data = [images.to(record.dtype) for images in found_data]
    found: Quantised = export_int8(model, record.example_inputs(), out, data)
    return {
        "file": str(found.path),
        "bytes": found.bytes,
        "difference": found.difference,
        "mean_difference": found.mean_difference,
        "agreement": found.agreement,
        "samples": found.samples,
        "calibration": where,
    }


def _bytes(path: Path) -> int:
    beside = path.with_suffix(".bin") if path.suffix == ".xml" else None
    return path.stat().st_size + (beside.stat().st_size if beside else 0)

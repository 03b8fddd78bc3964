"""``snello export``: a model file becomes ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello import export as to_onnx
from snello.deploy import file_bytes

from ._inputs import add_model_arguments, check_writable, finish, read_model

HELP = "export a model to ONNX, verified against PyTorch in ONNX Runtime"
EPILOG = "example: snello export lean.pt --out=lean.onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    parser.add_argument("--out", default="model.onnx", help="the file to write; default: model.onnx")


def run(arguments: argparse.Namespace) -> None:
    """Export and verify."""
    from snello.reporting import Table, busy, megabytes

    out = check_writable(arguments.out)
    model, record = read_model(arguments)
    with busy("exporting"):
        path = to_onnx(model, record.example_inputs(), out)
    size = file_bytes(path)
    table = Table(
        record.model.name, ("File", "ONNX [MB]", "Verified"), ((str(path), megabytes(size), "yes"),)
    )
    finish(table, {"file": str(path), "bytes": size}, Path(f"{out}.json"))

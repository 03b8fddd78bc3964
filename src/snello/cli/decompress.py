"""``snello decompress``: a bitstream becomes a model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello import decompress as decode
from snello.deploy import footprint
from snello.store import modelfile

from ._inputs import check_writable, finish, read_bytes
from ._own_code import add_own_code_argument, own_code

HELP = "decode a bitstream into a model file"
EPILOG = "example: snello decompress lean.snello --out=decoded.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("file", help="a bitstream written by 'snello compress'")
    parser.add_argument(
        "--out", default="decoded.pt", help="the model file to write; default: decoded.pt"
    )
    add_own_code_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Decompress, rebuild the model, write it."""
    from snello.lab.reporting import Table, busy, megabytes

    out = check_writable(arguments.out)
    data = read_bytes(arguments.file)
    with busy("decoding"):
        content = decode(data)
    model, record = modelfile.from_dict(
        content.record, content.tensors, arguments.file, trust=own_code(arguments)
    )
    modelfile.save(out, model, record, trust=own_code(arguments))
    size = footprint(model, record.example_inputs(1))
    table = Table(
        record.model.name, ("File", "Bitstream [MB]", "float32 [MB]", "Parameters"),
        ((str(out), megabytes(len(data)), megabytes(size.bytes), str(size.parameters)),),
    )  # fmt: skip
    finish(table, {"bitstream_bytes": len(data), "footprint": size}, Path(f"{out}.json"))

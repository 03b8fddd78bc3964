"""`snello decompress`: decode a bitstream into a model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello.errors import BitstreamError

from ._inputs import check_model_file, finish
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
    """Decode the bitstream, rebuild the model and write it."""
    from snello.codec import is_container
    from snello.deploy import file_bytes, footprint
    from snello.lab.reporting import Table, busy, megabytes
    from snello.store import load, save

    out = check_model_file(arguments, arguments.out)
    trust, size = own_code(arguments), file_bytes(arguments.file)
    if not is_container(arguments.file):
        raise BitstreamError(
            f"{arguments.file} is not a .snello bitstream; 'snello inspect' shows the content of a "
            "file"
        )
    with busy("decoding"):
        model, record = load(arguments.file, trust=trust)
    save(out, model, record, trust=trust)
    counts = footprint(model, record.inputs(1))
    table = Table(
        record.model.label, ("File", "Bitstream [MB]", "float32 [MB]", "Parameters"),
        ((str(out), megabytes(size), megabytes(counts.bytes), str(counts.parameters)),),
    )  # fmt: skip
    finish(table, {"bitstream_bytes": size, "footprint": counts}, Path(f"{out}.json"))

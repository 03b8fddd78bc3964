"""``snello compress``: a model file becomes a bitstream."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello import CodecSettings, modelfile
from snello import compress as encode
from snello.codec import read_header, stream_of
from snello.deploy import footprint
from snello.modelfile import write_file

from ._inputs import add_model_arguments, check_writable, finish, read_model

HELP = "code a model into an ISO/IEC 15938-17 (NNC) bitstream"
EPILOG = "example: snello compress lean.pt --out=lean.snello --qp=-32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    parser.add_argument("--out", default="model.snello", help="the bitstream to write; default: model.snello")
    parser.add_argument(
        "--qp", type=int, default=-32, help="quantisation parameter of weights; less is finer"
    )
    parser.add_argument("--nonweight-qp", type=int, default=-75, help="the same for biases and norms")
    parser.add_argument(
        "--uniform",
        action="store_true",
        help="uniform instead of dependent quantisation: more bytes, but a zero stays a zero",
    )
    parser.add_argument(
        "--codebook", action="store_true", help="with --uniform: list levels where that is smaller"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="write the plain NNC stream alone, for any NNC decoder: without the model's record, integers, digests",
    )


def run(arguments: argparse.Namespace) -> None:
    """Compress, write, and say how much smaller it is."""
    from snello.reporting import Table, busy, megabytes

    out = check_writable(arguments.out)
    settings = CodecSettings(
        qp=arguments.qp,
        nonweight_qp=arguments.nonweight_qp,
        dependent_quantisation=not arguments.uniform,
        codebook=arguments.codebook,
    )
    model, record = read_model(arguments)
    with busy("coding"):
        data = encode(model.state_dict(), settings, modelfile.to_dict(model, record))
    left_out = ""
    if arguments.raw:
        exact = sum(not entry.coded for entry in read_header(data).tensors)
        left_out = f" Plain stream: without the model's record and {exact} integer or empty tensors."
        data = stream_of(data)
    write_file(out, lambda beside: beside.write_bytes(data))
    size = footprint(model, record.example_inputs(1)).bytes
    table = Table(
        record.model.name, ("File", "float32 [MB]", "Bitstream [MB]", "Ratio"),
        ((str(out), megabytes(size), megabytes(len(data)), f"{size / len(data):.1f}x"),),
        f"qp {settings.qp}, nonweight qp {settings.nonweight_qp}.{left_out}",
    )  # fmt: skip
    finish(
        table,
        {"float32_bytes": size, "bitstream_bytes": len(data), "settings": settings},
        Path(f"{out}.json"),
    )

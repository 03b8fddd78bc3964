"""`snello compress`: code a model file into a bitstream."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from snello.errors import ConfigError
from snello.files import check_no_folder, write_bytes

from ._data import check_drop
from ._images import with_classes
from ._inputs import (
    add_model_arguments,
    check_named_model,
    check_output,
    finish,
    read_model,
    refuse_without,
)
from ._own_code import named_code
from ._rate import SEARCH, add_rate_arguments, codec_settings, search, search_images
from ._saving import save_or_rescue

if TYPE_CHECKING:
    from torch import nn

    from snello.codec import CodecSettings
    from snello.search.rate import RateSearch

HELP = "code a model into an ISO/IEC 15938-17 (NNC) bitstream"
EPILOG = "example: snello compress lean.pt --out=lean.snello --qp=-32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    parser.add_argument(
        "--out", help="the bitstream to write; default: model.snello, with --raw model.nnc"
    )
    parser.add_argument(
        "--qp", type=int, help="quantisation parameter of weights; lower is finer; default: -32"
    )
    parser.add_argument(
        "--nonweight-qp", type=int, default=-75, help="the same for biases and norms"
    )
    parser.add_argument(
        "--uniform",
        action="store_true",
        help="uniform instead of dependent quantisation: more bytes, but zeros stay exactly zero",
    )
    parser.add_argument(
        "--codebook", action="store_true", help="with --uniform: use codebooks where smaller"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="write a plain NNC bitstream, for any decoder: without record, integers and digests",
    )
    add_rate_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Code the model, write the bitstream and report the sizes."""
    from snello.deploy import footprint
    from snello.lab.reporting import Table, busy, megabytes

    settings, found, metric = _settings(arguments), None, arguments.metric
    model, record = read_model(arguments)
    out = _out(arguments)
    if not arguments.raw:
        check_named_model(arguments, model, record, out)
    size = footprint(model, record.inputs(1)).bytes
    if arguments.max_drop is not None:
        with busy("searching"):
            splits = search_images(arguments, model, record)
            found = search(arguments, model, record, splits)
        model, settings = found.model, found.settings
        record = with_classes(record, splits)
        if splits.task == "segmentation" and metric == "accuracy":
            metric = "mean IoU"
    notes = [
        _found(found, metric)
        if found
        else f"qp {settings.qp}, nonweight qp {settings.nonweight_qp}."
    ]
    with busy("coding"):
        if arguments.raw:
            notes.append(_write_stream(out, model, settings))
        else:
            save_or_rescue(out, model, record, settings=settings, trust=named_code(arguments))
    coded = out.stat().st_size
    table = Table(
        record.model.label, ("File", "float32 [MB]", "Bitstream [MB]", "Ratio"),
        ((str(out), megabytes(size), megabytes(coded), f"{size / coded:.1f}x"),),
        " ".join(notes),
    )  # fmt: skip
    result = {"float32_bytes": size, "bitstream_bytes": coded, "settings": settings}
    if found is not None:
        result |= {name: getattr(found, name) for name in ("before", "after", "bound", "trail")}
    finish(table, result, Path(f"{out}.json"))


def _out(arguments: argparse.Namespace) -> Path:
    """The file to write, checked before any work.

    Raises:
        ConfigError: if the suffix is not that of a container, or is that of a plain bitstream.
        OutputError: if the file cannot be written.
    """
    from snello.store import Container

    if arguments.out is None:
        arguments.out = "model.nnc" if arguments.raw else f"model{Container.suffix}"
    check_no_folder(arguments.out)  # before its suffix, which folders have none of
    named = Path(arguments.out).suffix == Container.suffix
    if arguments.raw and named:
        raise ConfigError(
            f"--out={arguments.out}: a plain bitstream (--raw) has no record to load a model by: "
            f"name it otherwise, such as {Path(arguments.out).stem}.nnc"
        )
    if not arguments.raw and not named:
        raise ConfigError(
            f"--out={arguments.out}: a bitstream must be named *{Container.suffix}; only a plain "
            "bitstream (--raw) may have another name"
        )
    return check_output(arguments, arguments.out)


def _write_stream(out: Path, model: nn.Module, settings: CodecSettings) -> str:
    """Write the plain NNC bitstream; return a note on the omitted parts."""
    from snello.codec import compress, read_header, stream_of

    data = compress(model.state_dict(), settings)
    exact = sum(not entry.coded for entry in read_header(data).tensors)
    write_bytes(out, stream_of(data))
    return f"Plain bitstream: without the model's record and {exact} integer or empty tensors."


def _found(found: RateSearch, metric: str) -> str:
    folded = ", BatchNorms folded" if found.folded else ""
    return (
        f"{found.method}{folded}: {metric} on validation images {found.before:.4f} before, "
        f"{found.after:.4f} after, {found.bound:.4f} allowed; {found.evaluations} evaluations."
    )


def _settings(arguments: argparse.Namespace) -> CodecSettings:
    if arguments.max_drop is None:
        refuse_without(arguments, "--max-drop=DROP", *SEARCH)
    elif arguments.qp is not None:
        raise ConfigError(
            "--qp and --max-drop exclude each other: with --max-drop the quantisation parameters "
            "are searched"
        )
    elif arguments.metric == "accuracy":
        check_drop(arguments)
    settings = codec_settings(arguments)
    return settings if arguments.qp is None else replace(settings, qp=arguments.qp)

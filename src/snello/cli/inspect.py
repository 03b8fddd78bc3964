"""``snello inspect``: what is in a bitstream or a model file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from snello.codec import Header, is_container, read_header
from snello.errors import ConfigError
from snello.store import modelfile

HELP = "show what is in a bitstream or a model file: record, tensors, sizes, settings, digests"
EPILOG = "example: snello inspect lean.snello --json"
_PREFIX = 56  # bytes of a container before its manifest, see docs/format.md


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("file", help="a bitstream written by 'snello compress', or a model file")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read, decode nothing, build nothing, and show."""
    from snello.lab.reporting import as_json, show

    content = inspect(arguments.file)
    if arguments.json:
        print(as_json(content))
        return
    for table in _tables(content):
        show(table)


def inspect(path: str) -> dict[str, Any]:
    """The content of a file as plain values; no codec is needed, and no tensor is decoded.

    Raises:
        ConfigError: if there is no such file.
        BitstreamError: if it is a damaged container.
        ModelError: if it is neither a container nor a model file.
    """
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}")
    return _container(path) if is_container(path) else _model_file(path)


def _container(path: str) -> dict[str, Any]:
    header = read_header(Path(path).read_bytes())
    return {
        "file": path,
        "format": f".snello {header.version}",
        "bytes": {
            "header": _PREFIX,
            "manifest": header.manifest_bytes,
            "stream": header.stream_bytes,
            "total": _PREFIX + header.manifest_bytes + header.stream_bytes,
        },
        "sha256": {"header and manifest": header.manifest_sha256, "stream": header.stream_sha256},
        "settings": header.settings,
        "record": modelfile.summary(header.record),
        "tensors": _coded_rows(header),
    }


def _coded_rows(header: Header) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "shape": entry.shape,
            "dtype": entry.dtype,
            "coding": "NNC" if entry.coded else "exact",
            "qp": entry.qp,
            "step_size": entry.step_size,
        }
        for entry in header.tensors
    ]


def _model_file(path: str) -> dict[str, Any]:
    record, state = modelfile.read(path)
    tensors = [_row(name, value) for name, value in state.items()]
    return {
        "file": path,
        "format": modelfile.FORMAT,
        "bytes": {
            "tensors": sum(value.numel() * value.element_size() for value in state.values()),
            "total": Path(path).stat().st_size,
        },
        "record": modelfile.summary(record),
        "tensors": tensors,
    }


def _row(name: str, value: Tensor) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"name": name, "shape": tuple(value.shape), "dtype": dtype, "coding": "exact"}


def _tables(content: dict[str, Any]) -> list[Any]:
    from snello.lab.reporting import Table

    facts = [("format", content["format"])]
    for group in ("bytes", "sha256", "record"):
        facts += [
            (f"{group}: {key}", _text(value)) for key, value in content.get(group, {}).items()
        ]
    if "settings" in content:
        facts += [
            (f"settings: {key}", _text(value))
            for key, value in content["settings"].to_dict().items()
        ]
    columns = ("shape", "dtype", "coding", "qp", "step_size")
    rows = [
        (_text(row["name"]), *(_text(row.get(key)) for key in columns))
        for row in content["tensors"]
    ]
    note = f"{len(rows)} tensors."
    return [
        Table(content["file"], ("Field", "Value"), tuple(facts)),
        Table(
            "Tensors", ("Name", "Shape", "dtype", "Coding", "QP", "Step size"), tuple(rows), note
        ),
    ]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value)) or "scalar"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else str(value)
    # A stranger's file shall not speak to the terminal.
    return text if text.isprintable() else repr(text)

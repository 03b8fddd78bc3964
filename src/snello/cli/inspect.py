"""`snello inspect`: show the content of a model file, a bitstream or an exported file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

HELP = (
    "show record, tensors, sizes, settings and digests of a model file, bitstream or exported file"
)
EPILOG = "example: snello inspect lean.snello --json"
_FACTS = ("bytes", "sha256", "record", "images", "settings", "footprint", "metadata")
_TABLES = {
    "inputs": ("shape", "dtype"),
    "tensors": ("name", "shape", "dtype", "coding", "qp", "step_size"),
}
"""Part of a description -> columns of its table."""
_SHOWN = 6
"""Names of classes to show."""
_TITLES = {"dtype": "dtype", "qp": "QP", "step_size": "Step size"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("file", help="a model file, a bitstream or an exported file")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of tables"
    )


def run(arguments: argparse.Namespace) -> None:
    """Describe a file without decoding tensors or building a model."""
    from snello.lab.reporting import as_json, show
    from snello.store import inspect

    content = inspect(arguments.file)
    if arguments.json:
        print(as_json(content))
        return
    for table in _tables(content):
        show(table)


def _tables(content: dict[str, Any]) -> list[Any]:
    from snello.lab.reporting import Table

    facts = [("format", content["format"])]
    record = dict(_mapping(content.get("record")))
    groups = {**content, "record": record, "images": record.pop("images", None)}
    for group in _FACTS:
        values = {
            key: v for key, v in _mapping(groups.get(group)).items() if v != [] or key != "classes"
        }
        facts += [(f"{group}: {key}", _text(value)) for key, value in values.items()]
    tables = [Table(content["file"], ("Field", "Value"), tuple(facts))]
    for part, columns in _TABLES.items():
        if part in content:
            rows = tuple(tuple(_text(row.get(c)) for c in columns) for row in content[part])
            header = tuple(_TITLES.get(column, column.capitalize()) for column in columns)
            tables.append(Table(part.capitalize(), header, rows, f"{len(rows)} {part}."))
    return tables


def _mapping(values: Any) -> Mapping[str, Any]:
    from snello.codec import CodecSettings
    from snello.deploy import Footprint

    if isinstance(values, CodecSettings):
        return values.to_dict()
    return asdict(values) if isinstance(values, Footprint) else values or {}


def _listed(values: Sequence[Any]) -> str:
    """A shape as `3 x 32 x 32`; other values separated by commas, the first few of many."""
    if all(isinstance(value, int) for value in values):
        return " x ".join(map(str, values)) or "scalar"
    more = f", ... ({len(values)})" if len(values) > _SHOWN else ""
    return ", ".join(map(_text, values[:_SHOWN])) + more


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return _listed(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "-" if value is None else str(value)
    # Control characters in a file must not reach the terminal.
    return text if text.isprintable() else repr(text)

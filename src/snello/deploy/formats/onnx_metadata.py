"""Facts about the inputs of an ONNX file, as JSON in its `metadata_props`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snello.errors import require
from snello.files import write_bytes

PREFIX = "snello."
"""Keys are `snello.mean`, `snello.std` ...; values are JSON."""


def write_metadata(path: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
    """Add facts to an ONNX file; facts with the same names are replaced.

    Args:
        path: the file.
        facts: name -> JSON value.

    Raises:
        OutputError: if the file cannot be written.
        MissingExtraError: without onnx.
    """
    onnx = require("onnx", "onnx", "writing metadata")
    # Weights in a file of their own stay there.
    model = onnx.load(str(path), load_external_data=False)
    kept = [(p.key, p.value) for p in model.metadata_props if p.key not in map(_key, facts)]
    del model.metadata_props[:]
    for key, value in [*kept, *((_key(name), json.dumps(v)) for name, v in facts.items())]:
        model.metadata_props.add(key=key, value=value)
    write_bytes(Path(path), model.SerializeToString())


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the facts of `write_metadata`; none in a file written by another program.

    Raises:
        MissingExtraError: without onnx.
    """
    onnx = require("onnx", "onnx", "reading metadata")
    found = {}
    for item in onnx.load(str(path), load_external_data=False).metadata_props:
        if item.key.startswith(PREFIX):
            try:
                found[item.key.removeprefix(PREFIX)] = json.loads(item.value)
            except (ValueError, RecursionError):
                continue  # written by another program
    return found


def _key(name: str) -> str:
    return f"{PREFIX}{name}"

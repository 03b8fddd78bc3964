"""Check of a `.pt2` archive before torch unpickles and evaluates parts of it.

Only the contents that `Program` writes are accepted: raw weights, operators of `torch.ops`
and of Python's `operator`, and sizes made of symbols and integers. Archives that contain code are
refused; this does not prove that torch's reader is safe for all other archives.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from snello.errors import ModelError
from snello.nested import entries

_OPERATOR = re.compile(
    r"torch\.ops(\.(?!__)\w+){2,3}|torch\.sym_\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)",
    re.ASCII,
)
METADATA = "extra/snello.json"
"""Name in the archive of the facts about the inputs: JSON that torch returns as bytes, unread."""
_NAME = re.compile(r"[\w.]*", re.ASCII)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_CALLS = "Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv Eq Ne Gt Ge Lt Le"


def check_program(path: Path) -> None:
    """Check an archive for pickled parts, calls of other functions, and text to evaluate.

    Raises:
        ModelError: with the name of the refused part.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = next(_suspicious(archive), None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged, or not a program of torch.export: {error}") from error
    if found is not None:
        raise ModelError(
            f"{path} contains {found}, which could run code when torch reads it; if you trust its "
            "source, load it with torch.export.load and measure its module"
        )


def _suspicious(archive: zipfile.ZipFile) -> Iterator[str]:
    models = 0
    for info in archive.infolist():
        # The archive contains a single folder with an arbitrary name.
        parts = PurePosixPath(info.filename).parts[1:]
        where = "/".join(parts)
        if re.fullmatch(r"data/(weights|constants)/\w+_config\.json", where, re.ASCII):
            yield from _payloads(json.loads(archive.read(info)))
        elif re.fullmatch(r"models/\w+\.json", where, re.ASCII):
            models += 1
            yield from _graph(json.loads(archive.read(info)))
        elif re.fullmatch(r"data/(sample_inputs|weights|constants)/\w+\.pt", where, re.ASCII):
            # Example inputs; in older versions of torch also the weights.
            if info.file_size and not _tensors_alone(archive.read(info)):
                yield f"pickled objects ({where})"
        elif where != METADATA and not re.fullmatch(
            r"data/(weights|constants)/(weight|tensor)_\d+|archive_format|archive_version|byteorder"
            r"|\.data/(version|serialization_id)|version",
            where,
            re.ASCII,
        ):
            yield f"a part of another kind ({where[:60]!r})"
    if not models:
        raise ValueError("it has no graph")


def _tensors_alone(data: bytes) -> bool:
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch raises various exceptions for data it refuses
        return False
    return True


def _payloads(content: Any) -> Iterator[str]:
    for name, payload in content["config"].items():
        if payload["use_pickle"] is not False:
            yield f"a pickled object ({name[:60]!r})"


def _graph(content: Any) -> Iterator[str]:
    if content.get("guards_code"):
        yield "guards as source text"
    for key, value in entries(content):
        if key == "target" and isinstance(value, str) and not _OPERATOR.fullmatch(value):
            yield f"a call of {value[:60]!r}"
        elif key == "expr_str" and not _arithmetic(value):
            yield f"the expression {str(value)[:60]!r}"
        elif key in ("name", "forward_arg_names") and not _plain_names(value):
            yield f"the name {str(value)[:60]!r}"
        elif key in ("in_spec", "out_spec") and not _plain_containers(value):
            yield "inputs or outputs in containers of another kind than tuples, lists and dicts"
        elif key == "range_constraints" and not all(_NAME.fullmatch(name) for name in value or {}):
            yield "constraints on an expression"


def _plain_containers(text: Any) -> bool:
    # A defaultdict, for example, names a module from which its factory would be imported.
    kinds = [value for key, value in entries(json.loads(text)) if key == "type"] if text else []
    return all(kind in _CONTAINERS for kind in kinds)


def _plain_names(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(not isinstance(text, str) or _NAME.fullmatch(text) for text in texts)


def _arithmetic(text: Any) -> bool:
    """Return True for arithmetic on symbols and numbers only."""
    # sympy would evaluate any Python expression, including calls.
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, TypeError):
        return False
    kinds = (
        ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator,
        ast.unaryop, ast.expr_context,
    )  # fmt: skip
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if not isinstance(node, kinds):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Name) and id(node) in called and node.id not in _CALLS.split():
            return False
        if (
            isinstance(node, ast.Name)
            and id(node) not in called
            and not re.fullmatch(r"[suz]+\d+", node.id)
        ):
            return False
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not node.value.isidentifier()
        ):
            return False
    return True

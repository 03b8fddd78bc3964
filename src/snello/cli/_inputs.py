"""Arguments, model loading and output shared by several commands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.deploy import FORMATS
from snello.errors import ConfigError
from snello.files import check_writable as check_writable
from snello.files import write_text
from snello.lab.reporting import Table, as_json, show
from snello.neurons import check_finite
from snello.store import Container, ModelSpec, Record, build, load, load_weights

from ._own_code import add_own_code_argument, import_own_code, own_code


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for a model file, or for an architecture with a file of weights."""
    parser.add_argument("file", nargs="?", help="a model file or a bitstream written by snello")
    add_architecture_arguments(parser)


def add_architecture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for an architecture by name, and for user code that a file may name."""
    parser.add_argument(
        "--model",
        help="instead: lenet-5, resnet18 (torchvision), timm:NAME, transformers:CLASS, or your own "
        "package.module:factory, which is imported and called",
    )
    parser.add_argument("--arguments", default="{}", help="the factory's arguments, as JSON")
    parser.add_argument(
        "--weights", help="a state_dict file for --model; random weights without it"
    )
    parser.add_argument("--input-shape", help="shape of one input of --model, such as 3,32,32")
    add_own_code_argument(parser)


def read_model(arguments: argparse.Namespace) -> tuple[nn.Module, Record]:
    """Read the model given by the arguments, in evaluation mode, on the CPU.

    Raises:
        ConfigError: if the arguments give no model, or two.
        ModelError: if the model cannot be built or loaded, or its weights contain NaN.
    """
    model, record = _read_model(arguments)
    check_finite(model, arguments.file or arguments.weights or record.model.name)
    return model, record


def _read_model(arguments: argparse.Namespace) -> tuple[nn.Module, Record]:
    if (arguments.file is None) == (arguments.model is None):
        raise ConfigError(
            "pass either a model file, or --model with --input-shape and optionally --weights"
        )
    seed(arguments)
    if arguments.file is not None:
        return load(arguments.file, trust=own_code(arguments))
    import_own_code([arguments.model])
    spec = ModelSpec(arguments.model, _json_object(arguments.arguments))
    record = Record(spec, _shape(arguments.input_shape))
    model = build(spec)
    if arguments.weights:
        load_weights(model, arguments.weights)
    return model.eval(), record


def seed(arguments: argparse.Namespace) -> None:
    """Seed torch if ``--seed`` is given."""
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)


def device(arguments: argparse.Namespace) -> torch.device:
    """Device chosen by the arguments; the CPU by default.

    Raises:
        ConfigError: if a GPU is chosen and torch sees none.
    """
    wanted = arguments.device or "cpu"
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device=cuda, but torch sees no GPU: use --device=cpu")
    return torch.device(wanted)


def on_device(
    model: nn.Module, inputs: Tensor, arguments: argparse.Namespace
) -> tuple[nn.Module, Tensor]:
    """Move a model and its inputs to the device chosen by the arguments."""
    where = device(arguments)
    return model.to(where), inputs.to(where)


def check_model_file(path: str) -> Path:
    """Check the path of a lossless model file (``.pt``) before any work is done.

    Raises:
        ConfigError: for the suffix of a bitstream or an export.
        OutputError: if the file cannot be written.
    """
    if Path(path).suffix in (Container.suffix, *FORMATS):
        raise ConfigError(
            f"--out={path}: this command writes a model file, *.pt; use 'snello compress' or "
            "'snello export' for other formats"
        )
    return check_writable(path)


def finish(table: Table, result: Any, path: str | Path) -> None:
    """Show a result as a table and write it as JSON."""
    show(table)
    print(f"written: {write_text(path, as_json(result))}")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--arguments={text!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'--arguments={text!r} must be a JSON object, like {{"classes": 10}}')
    return value


def _shape(text: str | None) -> tuple[int, ...]:
    if not text:
        raise ConfigError("--model needs the shape of one input, such as --input-shape=3,32,32")
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--input-shape={text!r} must be integers separated by commas, such as 3,32,32"
        ) from error
    if min(shape) < 1:
        raise ConfigError(f"--input-shape={text!r}: every dimension must be at least 1")
    return shape

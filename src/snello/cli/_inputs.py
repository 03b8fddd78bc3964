"""Arguments, model loading and output shared by several commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError
from snello.files import check_writable, write_text

from ._images import described
from ._names import suffixes
from ._own_code import add_own_code_argument, import_own_code, named_code, own_code

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from snello.lab.reporting import Table
    from snello.store import InputSpec, Record


ARCHITECTURE = ("--arguments", "--weights", "--input-shape")
"""Options of `--model`."""


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
    parser.add_argument(
        "--input-shape", action="append", metavar="SHAPE", help="shape of one input of --model, such as 3,32,32, "
        "or 16:int64 for ids; repeat it for a model with several inputs",
    )  # fmt: skip
    add_own_code_argument(parser)


def read_model(arguments: argparse.Namespace) -> tuple[nn.Module, Record]:
    """Read the model given by the arguments, in evaluation mode, on the CPU.

    Its record has the preprocessing of images that the command line gives.

    Raises:
        ConfigError: if the arguments give no model, or two, or a preprocessing that cannot be.
        ModelError: if the model cannot be built or loaded, or its weights contain NaN.
    """
    check_model_arguments(arguments)
    from snello.neurons import check_finite

    model, record = _read_model(arguments)
    check_finite(model, arguments.file or arguments.weights or record.model.name)
    return model, described(record, arguments)


def check_model_arguments(arguments: argparse.Namespace) -> None:
    """Check the words that name a model, before anything is imported or read.

    Raises:
        ConfigError: if they name none, or two, or a shape or arguments that cannot be.
    """
    if (arguments.file is None) == (arguments.model is None):
        raise ConfigError(
            "pass either a model file, or --model with --input-shape and optionally --weights"
        )
    if arguments.model is None:
        refuse_without(arguments, "--model=NAME", *ARCHITECTURE)
    else:
        _shapes(arguments.input_shape)
        json_object(arguments.arguments)


def _read_model(arguments: argparse.Namespace) -> tuple[nn.Module, Record]:
    from snello.store import ModelSpec, Record, build, images_of, load, load_weights

    seed(arguments)
    if arguments.file is not None:
        return load(arguments.file, trust=own_code(arguments))
    import_own_code([arguments.model])
    spec = ModelSpec(arguments.model, json_object(arguments.arguments))
    first, *further = _input_specs(arguments.input_shape)
    model = build(spec)
    record = Record(spec, first.shape, first.dtype, further=tuple(further))
    record.initialise(model)
    if arguments.weights:
        load_weights(model, arguments.weights)
    folder = Path(arguments.weights).parent if arguments.weights else None
    images = images_of(model, spec, folder) if len(first.shape) == 3 else None
    if images is not None and getattr(arguments, "mean", "") is None:
        warn(
            f"normalisation of {arguments.model}'s configuration: mean {joined(images.mean)}, standard "
            f"deviation {joined(images.std)}; --mean and --std override it",
            "note",
        )
    return model.eval(), replace(record, images=images)


def check_named_model(
    arguments: argparse.Namespace, model: nn.Module, record: Record, out: str | Path
) -> None:
    """Check that a network given by `--model` could be loaded from `out`; one read from a file could.

    Raises:
        ModelError: if it could not.
    """
    from snello.store import check_loadable

    if arguments.model is not None:
        check_loadable(model, record, str(out), trust=named_code(arguments))


def joined(values: Sequence[float]) -> str:
    """Numbers in the form of `--mean` and `--std`."""
    return ",".join(f"{value:.4g}" for value in values)


def warn(text: str, kind: str = "warning") -> None:
    """Print a line to the standard error."""
    print(f"snello: {kind}: {text}", file=sys.stderr)


def seed(arguments: argparse.Namespace) -> None:
    """Seed torch if `--seed` is given."""
    if arguments.seed is not None:
        import torch

        torch.manual_seed(arguments.seed)


def device(arguments: argparse.Namespace, *, unless_given: str = "cpu") -> torch.device:
    """Device chosen by the arguments.

    Args:
        arguments: of the command.
        unless_given: the choice without `--device`.

    Raises:
        ConfigError: if a GPU is chosen and torch sees none.
    """
    import torch

    wanted = arguments.device or unless_given
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device=cuda, but torch sees no GPU: use --device=cpu")
    return torch.device(wanted)


def on_device(
    model: nn.Module, inputs: tuple[Tensor, ...], arguments: argparse.Namespace
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Move a model and its inputs to the device chosen by the arguments."""
    where = device(arguments)
    return model.to(where), tuple(x.to(where) for x in inputs)


def check_one_input(record: Record, command: str) -> None:
    """Check that a model takes one input, as images are.

    Raises:
        ConfigError: for several inputs.
    """
    if record.further:
        raise ConfigError(
            f"{command} feeds images, and {record.model.name} takes {1 + len(record.further)} inputs"
        )


def check_output(arguments: argparse.Namespace, path: str | Path) -> Path:
    """Check the path of a file to write, before any work is done.

    Raises:
        ConfigError: for a file that the command reads.
        OutputError: if the file cannot be written.
    """
    path = Path(path)
    if path.exists() and any(path.samefile(file) for file in _read_files(arguments)):
        raise ConfigError(
            f"--out={path}: this would replace a file that is read, such as the dense network; choose another file"
        )
    return check_writable(path)


def check_model_file(
    arguments: argparse.Namespace, path: str | Path, *, in_place: bool = False
) -> Path:
    """Check the path of a lossless model file (`.pt`), as `check_output`.

    Args:
        arguments: the parsed command line.
        path: the file to write.
        in_place: the file may be the one that is read, because nothing of it is lost.

    Raises:
        ConfigError: also for the suffix of a bitstream, an export, or what is written beside a model.
    """
    from snello.deploy import FORMATS
    from snello.store import Container

    if Path(path).suffix in (Container.suffix, *FORMATS, ".json", ".html"):
        raise ConfigError(
            f"--out={path}: this command writes a model file, *.pt; use 'snello compress' or "
            "'snello export' for other formats"
        )
    return check_writable(path) if in_place else check_output(arguments, path)


def check_json_file(arguments: argparse.Namespace, path: str | Path) -> Path:
    """Check the path of a JSON file, as `check_output`.

    Raises:
        ConfigError: also for the suffix of a model, or of the page that is written beside it.
    """
    if Path(path).suffix in (*suffixes(), ".html"):
        raise ConfigError(f"--out={path}: this command writes numbers, *.json; choose such a name")
    return check_output(arguments, path)


def _read_files(arguments: argparse.Namespace) -> list[Path]:
    """The existing files among the arguments that name what a command reads."""
    found = [getattr(arguments, name, None) for name in ("file", "onnx", "weights", "samples")]
    for name in ("files", "results"):
        found += getattr(arguments, name, [])
    return [Path(file) for file in found if isinstance(file, str) and Path(file).is_file()]


def refuse_without(arguments: argparse.Namespace, need: str, *options: str) -> None:
    """Refuse options of the command line that have no effect without another one.

    Args:
        arguments: the parsed command line.
        need: the option that is missing, with a value.
        options: the options without an effect, such as `"--lr"`.

    Raises:
        ConfigError: naming the first of them that is given.
    """
    for option in options:
        if option in getattr(arguments, "given", ()):
            raise ConfigError(f"{option} has no effect without {need}: give both or neither")


def finish(table: Table, result: Any, path: str | Path) -> None:
    """Show a result as a table and write it as JSON.

    Call it before pages and plots are written, which may find the disk full: the numbers are small.
    """
    from snello.lab.reporting import as_json, show

    show(table)
    print(f"written: {write_text(path, as_json(result))}")


def json_object(text: str) -> dict[str, Any]:
    """The value of `--arguments`.

    Raises:
        ConfigError: for anything but a JSON object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--arguments={text!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'--arguments={text!r} must be a JSON object, like {{"classes": 10}}')
    return value


def _input_specs(texts: Sequence[str]) -> list[InputSpec]:
    """Shape and dtype of every input; floating-point inputs are float32."""
    import torch

    from snello.store import InputSpec

    return [
        InputSpec(shape, getattr(torch, dtype) if dtype else torch.float32)
        for shape, dtype in _shapes(texts)
    ]


def _shapes(texts: Sequence[str] | None) -> list[tuple[tuple[int, ...], str]]:
    """Shape and name of the integer dtype, empty for floating point, of every input.

    Raises:
        ConfigError: for no shape, a size that is not a positive integer, or an unknown dtype.
    """
    if not texts or not all(texts):
        raise ConfigError("--model needs the shape of one input, such as --input-shape=3,32,32")
    return [_shape(text) for text in texts]


def _shape(text: str) -> tuple[tuple[int, ...], str]:
    sizes, _, dtype = text.partition(":")
    try:
        shape = tuple(int(part) for part in sizes.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--input-shape={text!r} must be integers separated by commas, such as 3,32,32"
        ) from error
    if min(shape) < 1:
        raise ConfigError(f"--input-shape={text!r}: every dimension must be at least 1")
    if dtype not in ("", "int64", "int32"):
        raise ConfigError(
            f"--input-shape={text!r}: the dtype after the colon is int64 or int32; floating-point "
            "inputs need none"
        )
    return shape, dtype

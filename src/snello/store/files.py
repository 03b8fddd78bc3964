"""Save, load and inspect files of all formats, dispatched by suffix or content.

>>> save("lean.pt", lean, Record(ModelSpec("lenet-5"), (1, 28, 28)))
>>> model, record = load("lean.pt")
>>> save("lean.snello", model, record, settings=CodecSettings(qp=-26))
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snello.codec import CodecSettings
from snello.deploy import FORMATS
from snello.errors import ConfigError, ModelError
from snello.wrappers import unwrapped

from ._check import check_loadable
from ._file import ModelFile
from ._pretrained import is_pretrained, load_pretrained
from ._untrusted import trusted_names
from .container import Container
from .pt import Pt
from .record import Record, from_dict, to_dict
from .safetensors import Safetensors

MODEL_FILES: tuple[ModelFile, ...] = (Container(), Safetensors(), Pt())
"""Formats of model files; the first that recognises a file reads it."""


def save(
    path: str | Path,
    model: nn.Module,
    record: Record,
    *,
    settings: CodecSettings | None = None,
    trust: str | Collection[str] = (),
) -> Path:
    """Write a model file; an existing one is replaced only when the new one is complete.

    Args:
        path: `*.snello` for a bitstream with quantised weights; `*.pt`, or any other suffix
            except those of exported files, for a file that keeps weights and dtypes exactly.
        model: the model; of one inside DataParallel, DistributedDataParallel or `torch.compile`, the
            module inside.
        record: description of its structure; before writing it is checked that `load` can
            build the model from it.
        settings: codec settings of a bitstream; None for the defaults.
        trust: names of your own factories that may be called for this check. A record that names
            another factory of your own is written without comparing the architecture.

    Raises:
        ModelError: for a record that `load` would refuse, or that describes another
            architecture.
        ConfigError: for the suffix of an export, or settings with a `.pt` file.
        OutputError: if the file cannot be written.
        MissingExtraError: for a bitstream without nncodec.
    """
    path = Path(path)
    if path.suffix in FORMATS:
        raise ConfigError(
            f"{path}: a {FORMATS[path.suffix].label} file cannot store the record of a model; "
            "write it with snello.export, and model files as *.pt, *.safetensors or *.snello"
        )
    kind = next((kind for kind in MODEL_FILES if kind.suffix == path.suffix), Pt())
    model = unwrapped(model, f"{path} is not written")
    check_loadable(model, record, str(path), trust=trust)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return kind.write(path, to_dict(model, record), state, settings)


def load(path: str | Path, *, trust: str | Collection[str] = ()) -> tuple[nn.Module, Record]:
    """Read a model file, a bitstream or a folder of Hugging Face's `save_pretrained`.

    Args:
        path: path of the file or folder.
        trust: names of your own factories that the file may name, as for
            [`snello.store.from_dict`][].

    Returns:
        The model in evaluation mode, on the CPU, and its record.

    Raises:
        ModelError: if the file is missing, damaged or not a model file, or names an untrusted
            factory.
        BitstreamError: if it is a damaged bitstream.
        ConfigError: if `trust` is neither a string nor a collection of strings.
        MissingExtraError: if the model belongs to a library that is not installed, or the file is a
            bitstream and nncodec is not installed.
    """
    trusted_names(trust)
    if is_pretrained(path):
        return load_pretrained(path)
    data, state = read(path)
    model, record = from_dict(data, state, str(path), trust=trust)
    return model.eval(), record


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the record and the weights of a model file or a bitstream, without building the model.

    Raises:
        ModelError: if the file is missing, damaged or not a model file.
        BitstreamError: if it is a damaged bitstream.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: name a model file in it")
    if not path.is_file():
        raise ModelError(f"there is no model file {path}")
    try:
        with _reading(path):
            return _kind_of(path).read(path)
    except ModelError as error:
        if path.suffix not in FORMATS:
            raise
        raise ModelError(
            f"{path} is an exported file, from which no model is built: give the model file that it was "
            "exported from"
        ) from error


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe a model file, a bitstream or an exported file, without building the model.

    Returns:
        Plain values: `file`, `format`, `bytes`; for a model file also `record` and
        `tensors`, for a bitstream also `settings` and `sha256`, for an exported file also
        `sha256`, `inputs` and `footprint`.

    Raises:
        ModelError: if the file is missing, damaged or of an unknown format.
        BitstreamError: if it is a damaged bitstream.
        MissingExtraError: for an exported file without the packages that read it.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    format = FORMATS.get(path.suffix)
    with _reading(path):
        return _kind_of(path).inspect(path) if format is None else format.inspect(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file that the system cannot read."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _kind_of(path: Path) -> ModelFile:
    # Dispatch by content, so that a renamed file can be read.
    return next(kind for kind in MODEL_FILES if kind.recognises(path))

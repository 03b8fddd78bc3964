"""Saving, loading and inspecting of files of every kind, by their suffix.

>>> save("lean.pt", lean, Record(ModelSpec("lenet-5"), (1, 28, 28)))
>>> model, record = load("lean.pt")
>>> save("lean.snello", model, record, settings=CodecSettings(qp=-26))
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snello.codec import CodecSettings
from snello.deploy import FORMATS
from snello.errors import ConfigError, ModelError

from ._check import check_loadable
from ._file import ModelFile
from ._pretrained import is_pretrained, load_pretrained
from ._untrusted import trusted_names
from .container import Container
from .pt import Pt
from .record import Record, from_dict, to_dict

MODEL_FILES: tuple[ModelFile, ...] = (Container(), Pt())
"""Kinds of model files; the first that recognises a file reads it."""


def save(
    path: str | Path,
    model: nn.Module,
    record: Record,
    *,
    settings: CodecSettings | None = None,
    trust: str | Collection[str] = (),
) -> Path:
    """Write a model file; the old one, if any, stays whole until the new one is.

    Args:
        path: ``*.snello`` for a bitstream, whose weights are quantised; ``*.pt``, or any other name
            that is not an export's, for a file that keeps weights and dtypes as they are.
        model: the model.
        record: the structure, checked before anything is written: :func:`load` must be able to
            build it.
        settings: of the codec, for a bitstream; None for its defaults.
        trust: names of factories of your own that may be called for this check. Without it a record
            that names a function of your own is written without comparing the architecture.

    Raises:
        ModelError: for a record that :func:`load` would refuse, or that is of another architecture.
        ConfigError: for the suffix of an export, or settings with a ``.pt`` file.
        OutputError: if the file cannot be written.
        MissingExtraError: for a bitstream without nncodec.
    """
    path = Path(path)
    if path.suffix in FORMATS:
        raise ConfigError(
            f"{path}: a {FORMATS[path.suffix].label} file holds no record of the model; write it with snello.export, "
            "and model files as *.pt or *.snello"
        )
    kind = next((kind for kind in MODEL_FILES if kind.suffix == path.suffix), Pt())
    check_loadable(model, record, str(path), trust=trust)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return kind.write(path, to_dict(model, record), state, settings)


def load(path: str | Path, *, trust: str | Collection[str] = ()) -> tuple[nn.Module, Record]:
    """Read a model file, a bitstream or a folder of Hugging Face's ``save_pretrained``.

    Args:
        path: of the file or folder.
        trust: names of factories of your own that the file may call, as for
            :func:`snello.store.from_dict`.

    Returns:
        The model in evaluation mode, on the CPU, and its record.

    Raises:
        ModelError: if the file is missing, damaged, or no model file, or names a factory that it
            may not.
        BitstreamError: if it is a damaged bitstream.
        ConfigError: if ``trust`` is not a name or several.
        MissingExtraError: if the model is of a library that is not installed, or to read a
            bitstream without nncodec.
    """
    trusted_names(trust)
    if is_pretrained(path):
        return load_pretrained(path)
    data, state = read(path)
    model, record = from_dict(data, state, str(path), trust=trust)
    return model.eval(), record


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the record and the weights of a model file or a bitstream; no model is built.

    Raises:
        ModelError: if the file is missing, damaged, or no model file.
        BitstreamError: if it is a damaged bitstream.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no model file {path}")
    return _kind_of(path).read(path)


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe a model file, a bitstream or an exported file in plain values; no model is built.

    Returns:
        ``file``, ``format``, ``bytes``; of a model file also ``record`` and ``tensors``, of a
        bitstream also ``settings`` and ``sha256``, of an exported file also ``sha256``, ``inputs``
        and ``footprint``.

    Raises:
        ModelError: if the file is missing, damaged, or of no kind that is known.
        BitstreamError: if it is a damaged bitstream.
        MissingExtraError: for an exported file without the packages that read it.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    format = FORMATS.get(path.suffix)
    return _kind_of(path).inspect(path) if format is None else format.inspect(path)


def _kind_of(path: Path) -> ModelFile:
    # By content, not by suffix: a renamed file is still read.
    return next(kind for kind in MODEL_FILES if kind.recognises(path))

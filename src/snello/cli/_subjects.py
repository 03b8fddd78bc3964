"""Model files and exported files as subjects of a measurement."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from snello.deploy import FORMATS, Subject
from snello.errors import ConfigError
from snello.store import MODEL_FILES, load

from ._inputs import on_device, read_model
from ._own_code import own_code


def suffixes() -> tuple[str, ...]:
    """Suffixes of the files that can be measured."""
    return (*(kind.suffix for kind in MODEL_FILES), *FORMATS)


def subjects(
    arguments: argparse.Namespace, *, batch: int, short_names: bool = False
) -> list[Subject]:
    """Read the subjects of the arguments: files, all files of folders, or an architecture.

    Args:
        arguments: ``files`` and the options of :func:`snello.cli._inputs.add_model_arguments`.
        batch: batch size of a model's inputs.
        short_names: name subjects after their files, without the suffix.

    Raises:
        ConfigError: if there is no subject, or both files and an architecture, or a folder without
            models.
        ModelError: if a model cannot be loaded.
    """
    if batch < 1:
        raise ConfigError(f"--batch={batch}: choose at least 1")
    if bool(arguments.files) == (arguments.model is not None):
        raise ConfigError(
            "pass either model files, or --model with --input-shape and optionally --weights"
        )
    if arguments.model is not None:
        arguments.file = None
        model, record = read_model(arguments)
        model, inputs = on_device(model, record.example_inputs(batch), arguments)
        return [Subject(arguments.model, model, (inputs,))]
    paths = [path for text in arguments.files for path in _expanded(Path(text))]
    names = _names(paths, short_names)
    return [_subject(path, name, batch, arguments) for path, name in zip(paths, names, strict=True)]


def _subject(path: Path, name: str, batch: int, arguments: argparse.Namespace) -> Subject:
    if path.suffix in FORMATS:
        return Subject(name, file=path)
    model, record = load(path, trust=own_code(arguments))
    model, inputs = on_device(model, record.example_inputs(batch), arguments)
    return Subject(name, model, (inputs,), path, bitstream=path.suffix == ".snello")


def _expanded(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    known = suffixes()
    found = sorted(p for p in path.rglob("*") if p.suffix in known and p.is_file())
    if not found:
        raise ConfigError(f"{path} has no models: none of its files ends in {', '.join(known)}")
    return found


def _names(paths: Sequence[Path], short: bool) -> list[str]:
    """Shortest unique names: file names, preceded by as many folders as needed."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        parts = [path.with_suffix("").parts if short else path.parts for path in paths]
        names = [("-" if short else "/").join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(
        "two models have the same name"
        + (", apart from their suffixes" if short else "")
        + f": {', '.join(map(str, paths))}; pass each once"
    )

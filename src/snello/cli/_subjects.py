"""Model files and exported files as subjects of a measurement."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snello.errors import ConfigError

from ._images import described
from ._inputs import ARCHITECTURE, on_device, read_model, refuse_without
from ._names import suffixes
from ._own_code import own_code

if TYPE_CHECKING:
    from snello.deploy import Subject
    from snello.store import ImageInput


def subjects(
    arguments: argparse.Namespace, *, batch: int, short_names: bool = False
) -> list[Subject]:
    """Read the subjects of the arguments: files, all files of folders, or an architecture.

    Args:
        arguments: `files` and the options of `snello.cli._inputs.add_model_arguments`.
        batch: batch size of a model's inputs.
        short_names: name subjects after their files, without the suffix.

    Raises:
        ConfigError: if there is no subject, or both files and an architecture, or a folder without
            models.
        ModelError: if a model cannot be loaded.
    """
    return [
        subject
        for subject, _ in subjects_and_images(arguments, batch=batch, short_names=short_names)
    ]


def subjects_and_images(
    arguments: argparse.Namespace, *, batch: int, short_names: bool = False
) -> list[tuple[Subject, ImageInput | None]]:
    """Read the subjects as `subjects` does, with the preprocessing of their images."""
    from snello.deploy import Subject

    if batch < 1:
        raise ConfigError(f"--batch={batch}: choose at least 1")
    if bool(arguments.files) == (arguments.model is not None):
        raise ConfigError(
            "pass either model files, or --model with --input-shape and optionally --weights"
        )
    if arguments.model is not None:
        arguments.file = None
        model, record = read_model(arguments)
        model, inputs = on_device(model, record.inputs(batch), arguments)
        facts = record.image_facts()
        return [(Subject(arguments.model, model, inputs, facts=facts), record.images)]
    refuse_without(arguments, "--model=NAME", *ARCHITECTURE)
    paths = [path for text in arguments.files for path in _expanded(Path(text))]
    names = _names(paths, short_names)
    return [_subject(path, name, batch, arguments) for path, name in zip(paths, names, strict=True)]


def _subject(
    path: Path, name: str, batch: int, arguments: argparse.Namespace
) -> tuple[Subject, ImageInput | None]:
    from snello.deploy import FORMATS, Subject
    from snello.store import load

    if path.suffix in FORMATS:
        return Subject(name, file=path), None
    model, record = load(path, trust=own_code(arguments))
    model, inputs = on_device(model, record.inputs(batch), arguments)
    facts = described(record, arguments).image_facts()
    coded = path.suffix == ".snello"
    return Subject(name, model, inputs, path, bitstream=coded, facts=facts), record.images


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
    if short and len(set(paths)) == len(paths):
        # lean.pt and lean.onnx: each keeps its name, the file of a runtime with its ending.
        return _told_apart(paths)
    raise ConfigError(
        "two models have the same name"
        + (", apart from their suffixes" if short else "")
        + f": {', '.join(map(str, paths))}; pass each once"
    )


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """Names of files that differ in their endings alone: `lean` and `lean-onnx`."""
    stems = [path.with_suffix("").name for path in paths]
    return [
        f"{stem}-{path.suffix[1:]}" if stem in stems[:place] else stem
        for place, (path, stem) in enumerate(zip(paths, stems, strict=True))
    ]

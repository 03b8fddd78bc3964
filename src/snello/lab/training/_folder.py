"""The folder of a run: locked by one process, and resumed only with the same settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snello.errors import ConfigError, ModelError, OutputError, require
from snello.files import read_json_object, remove_leftovers, write_text
from snello.lab.methods import METHOD_SPECS, method_of
from snello.lab.recipes import CurationConfig, Recipe
from snello.store import archives

from ._checkpoints import epochs_in
from ._distributed import restarted, world
from ._extend import refusal
from ._result import CHECKPOINT, MODEL, NOTE, RESULT, TrainingResult

LOCK = ".lock"
_DYING = 7.0
"""Seconds until the loader workers of a killed process, which hold its lock, notice and end."""


@contextmanager
def claimed(folder: Path, *, resume: bool = False) -> Iterator[None]:
    """Create a run folder and lock it against other processes.

    With several processes per run, rank 0 does so. The operating system releases the lock when the
    process ends, even after a crash.

    Raises:
        ConfigError: if the folder is in use by another process.
        OutputError: if the folder cannot be created or written to.
    """
    if not world().is_first:
        yield
        return
    filelock = require("filelock", "train", "locking a run folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create the run folder {folder}: {error.strerror or error}"
        ) from error
    lock_file = folder / LOCK
    lock = filelock.FileLock(lock_file, timeout=_DYING if resume or restarted() else 0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(
            f"{folder} is in use by another process: wait until it has ended, or choose another --out"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write to the run folder {folder}: {reason}") from error
    try:
        remove_leftovers(folder, CHECKPOINT, RESULT, NOTE, MODEL)
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


def check_same_run(folder: Path, recipe: Recipe, method: str, *, resume: bool, done: int) -> None:
    """Check that the run in a folder, if there is one, may be resumed with these settings.

    Args:
        folder: folder of the run.
        recipe: the recipe to resume with.
        method: the method to resume with.
        resume: whether an existing run may be resumed at all.
        done: number of epochs that the run has finished.

    Raises:
        ConfigError: if it may not; the message names the settings that differ, or the reason why
            the run cannot be extended; and for files of a run without its settings.
    """
    note = folder / NOTE
    if not note.is_file():
        _check_holds_nothing(folder)
    if not (note.is_file() and holds_run(folder)):
        return
    if not resume:
        raise ConfigError(
            f"{folder} already holds a run: add --resume to continue it, or choose another --out"
        )
    # Notes of older versions have no method.
    there, asked = {"method": method, **read_note(note)}, _asked(recipe, method)
    if found := differences(there, asked, _unused(method) | _length(method)):
        raise ConfigError(
            f"{folder} holds a run of another recipe: {found}: choose another --out, or resume with "
            "the run's own settings"
        )
    if (reason := refusal(there, recipe, method, done)) is not None:
        raise ConfigError(
            f"{folder} holds a run of {there['epochs']} epochs, {done} of them finished: {reason}"
        )


def _check_holds_nothing(folder: Path) -> None:
    """Refuse to replace files of other programs, and to resume a run whose settings are lost."""
    for name in (MODEL, RESULT, CHECKPOINT):
        if (folder / name).is_file():
            raise ConfigError(
                f"{folder} holds a {name} but no {NOTE}, which every run of snello writes first: a run "
                f"would replace it; choose another --out, or move {name} away"
            )


def check_finished_run(folder: Path, recipe: Recipe, method: str) -> None:
    """Check that the finished run in a folder is of these settings, its length included.

    Raises:
        ConfigError: if it is not; the message names the settings that differ.
    """
    if not (folder / NOTE).is_file():
        return
    there, asked = read_note(folder / NOTE), _asked(recipe, method)
    # The machine has no influence on which run it is.
    if found := differences(there, asked, _unused(method) | {"device", "log"}):
        raise ConfigError(
            f"{folder} holds a run of other settings: {found}: choose another --out, or remove "
            f"{folder.parent}"
        )


def holds_run(folder: Path) -> bool:
    """Return True if a folder holds a run that can be resumed."""
    return any((folder / name).is_file() for name in (RESULT, CHECKPOINT))


def finished_epochs(folder: Path) -> int:
    """Number of finished epochs in a folder's checkpoint, else in its result; 0 without either.

    Raises:
        ModelError: if the checkpoint is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        result = folder / RESULT
        return len(TrainingResult.read(result).epochs) if result.is_file() else 0
    try:
        return epochs_in(archives.load(path))
    except ModelError as error:
        if "pickled code" in str(error):
            raise ModelError(
                f"{error}; it was not written by a run of snello: remove it to start this run again"
            ) from error
        raise ModelError(f"{path} is damaged: remove it to start this run again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a checkpoint of a run: remove it to start this run again"
        ) from error


def write_note(folder: Path, recipe: Recipe, method: str) -> None:
    """Write the recipe and the method of a run to its folder.

    Raises:
        OutputError: if the file cannot be written.
    """
    write_text(folder / NOTE, json.dumps(_asked(recipe, method), indent=1))


def _asked(recipe: Recipe, method: str) -> dict[str, Any]:
    """Settings of a run as JSON returns them: a round trip turns tuples into lists."""
    asked: dict[str, Any] = json.loads(json.dumps({"method": method, **asdict(recipe)}))
    return asked


def read_note(note: Path) -> dict[str, Any]:
    """The settings of a run from the note in its folder.

    Raises:
        ConfigError: if it is missing or damaged.
    """
    remedy = "choose another --out, or remove the run and start again"
    if not note.is_file():
        raise ConfigError(f"{note} is missing: {remedy}")
    asked = read_json_object(note, remedy)
    try:
        return _completed(asked)
    except TypeError as error:
        raise ConfigError(f"{note} is damaged: {remedy}") from error


def _completed(asked: dict[str, Any]) -> dict[str, Any]:
    """A note with the settings that older versions did not write."""
    return {
        **asked,
        "curation": asked.get("curation", asdict(CurationConfig())),
        "data": {"kept": None, **asked.get("data", {})},
    }


def _unused(method: str) -> set[str]:
    """Parts of a recipe without influence on the weights that a method trains."""
    blocks = {spec.uses for spec in METHOD_SPECS.values()}
    return {"methods", "ship", *blocks} - method_of(method).uses


def _length(method: str) -> set[str]:
    """Settings of a run's length, which may differ if `refusal` returns None."""
    return {"epochs", f"{method_of(method).block}.finetune"}


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], skip: Collection[str] = ()
) -> str:
    """The first three settings that differ, with both values; empty if none does.

    Args:
        there: settings of the existing run.
        here: settings of the request.
        skip: dotted names of blocks and options that may differ.
    """
    found = list(_differing(there, here, skip))
    return "; ".join(found[:3]) + (" ..." if found[3:] else "")


def _differing(
    there: Mapping[str, Any], here: Mapping[str, Any], skip: Collection[str], within: str = ""
) -> Iterator[str]:
    for name in sorted({*there, *here}):
        old, new, dotted = there.get(name), here.get(name), f"{within}{name}"
        if dotted in skip:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differing(old, new, skip, f"{dotted}.")
        elif old != new:
            yield f"{dotted} is {old!r} there, {new!r} here"

"""One training run: a recipe, a method, a folder. Killed, it resumes from its last finished epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from snello.datasets import Splits
from snello.errors import ConfigError, ModelError, OutputError
from snello.files import write_text

from ._config import Recipe
from ._data import load_data
from ._distributed import rejoin, restarted, wait_for_all, world
from ._methods import method_of
from ._result import CHECKPOINT, NOTE, RESULT, TrainingResult
from ._run import Progress, Run, device_of


def train(
    recipe: Recipe,
    method: str,
    folder: str | Path,
    *,
    splits: Splits | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    matched: str | Path | None = None,
) -> TrainingResult:
    """Train a recipe's network with one method.

    Under ``torchrun`` every process calls this; the batch is dealt out among them, the first one writes.

    Args:
        recipe: what to do.
        method: "baseline", "lobster", "serene", "neq", "stochastic-0.2", "stochastic-star", "serene+neq", ...;
            see :data:`snello.training.METHODS`.
        folder: where checkpoint, model file and ``result.json`` go.
        splits: the data, if it is loaded already.
        resume: go on from the folder's checkpoint, or return its result if it is finished. Settings that this
            method does not read (another method's, those of shipping) may differ. The weights at the end are
            those of a run that was never interrupted, bit for bit on the CPU. A run that torchrun starts again
            after a process was lost resumes by itself.
        progress: called with a line of text after each epoch.
        matched: folder of the finished NEq run that ``stochastic-star`` imitates; default: ``neq`` beside
            ``folder``.

    Raises:
        ConfigError: for an unknown method, for a folder that holds a run already while ``resume`` is false, or
            one of another method or recipe, naming what differs.
        SnelloError: whatever the data, the model or the training have to complain about.
    """
    update = method_of(method).update
    replace(recipe, methods=(method,))  # whether the recipe can be trained by this very method
    folder, resume = Path(folder), resume or restarted()
    result_file, checkpoint = folder / RESULT, folder / CHECKPOINT
    if world().is_first:
        _check_folder(folder, recipe, method, resume)
    if resume and result_file.is_file():
        return TrainingResult.read(result_file)
    imitated = _finished(Path(matched or folder.parent / "neq")) if update == "stochastic-star" else None
    splits = splits or load_data(recipe)
    resumed = _sound(checkpoint) if resume and checkpoint.is_file() else None
    run = Run(recipe, method, splits, matched=imitated, progress=progress)
    trainer = run.trainer(folder)
    if run.world.is_first:  # not before: what was wrong until here has started no run
        asked = json.dumps(_asked(recipe, method), indent=1)
        write_text(folder / NOTE, asked)
    rejoin(device_of(recipe))
    started = time.perf_counter()
    trainer.fit(
        run.task, run.batches.train, run.batches.validation,
        ckpt_path=resumed, weights_only=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if run.world.is_first:
        run.finish(folder, trainer, seconds)
    wait_for_all()
    return TrainingResult.read(result_file)


def validate(recipe: Recipe, splits: Splits | None = None) -> Splits:
    """Check everything about a recipe that can be known before the first step, for all of its methods.

    Data are found and read, the model is built and run on two images, optimizer, schedule, sensitivities,
    pruners and probes are built and taken down again.

    Returns:
        The data.

    Raises:
        SnelloError: the first thing that is wrong.
    """
    splits = splits or load_data(recipe)
    for method in recipe.methods:
        Run(recipe, method, splits).check()
    return splits


def _finished(folder: Path) -> TrainingResult | None:
    path = folder / RESULT
    return TrainingResult.read(path) if path.is_file() else None


def _sound(checkpoint: Path) -> Path:
    """The checkpoint, if it can be read at all.

    Raises:
        ModelError: if it is damaged.
    """
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise ModelError(f"{checkpoint} is damaged: remove it to start this run anew") from error
    return checkpoint


def _check_folder(folder: Path, recipe: Recipe, method: str, resume: bool) -> None:
    """Create the folder, or check that the run that lies there may be gone on with."""
    note = folder / NOTE
    if note.is_file() and any((folder / name).is_file() for name in (RESULT, CHECKPOINT)):
        if not resume:
            raise ConfigError(
                f"{folder} holds a run already: add --resume to go on with it, or choose another --out"
            )
        there = {"method": method, **_read(note)}  # notes of before have no method
        if differences := _differences(there, _asked(recipe, method), _unused(method)):
            raise ConfigError(
                f"{folder} holds a run of another recipe: {'; '.join(differences[:3])}"
                f"{' ...' if differences[3:] else ''}: choose another --out, or resume with its own"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the run folder {folder}: {error.strerror or error}") from error


def _asked(recipe: Recipe, method: str) -> dict[str, Any]:
    """What a run folder notes of what it was asked for, as JSON has it: a tuple comes back as a list."""
    asked: dict[str, Any] = json.loads(json.dumps({"method": method, **asdict(recipe)}))
    return asked


def _read(note: Path) -> dict[str, Any]:
    try:
        asked: dict[str, Any] = json.loads(note.read_text())
        return dict(asked)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{note} is damaged: choose another --out, or remove the run and start anew"
        ) from error


def _unused(method: str) -> set[str]:
    """Parts of a recipe that say nothing about the weights that a method trains."""
    used = method_of(method)
    parts = {"methods", "ship", "lobster", "serene"} - {used.pruning or ""}
    return parts if used.update else parts | {"neq"}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], skip: Collection[str] = ()) -> list[str]:
    """Which settings differ, by their dotted names, with both values."""
    found = []
    for name in sorted({*there, *here} - {*skip}):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}.{difference}" for difference in _differences(old, new)]
        elif old != new:
            found.append(f"{name} is {old!r} there, {new!r} here")
    return found

"""Training of one method of a recipe in a folder, resumable after every epoch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning as L

from snello.errors import ConfigError, ModelError, OutputError, Stopped
from snello.files import is_full
from snello.lab.datasets import Splits
from snello.lab.methods import method_of
from snello.lab.recipes import Recipe

from ._data import load_data
from ._device import device_of
from ._distributed import rejoin, restarted, wait_for_all, world
from ._folder import check_same_run, claimed, finished_epochs, write_note
from ._result import CHECKPOINT, MODEL, RESULT, TrainingResult
from ._run import Progress, Run
from ._stop import Halt, StopSignals


def train(
    recipe: Recipe,
    method: str,
    folder: str | Path,
    *,
    splits: Splits | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    matched: str | Path | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> TrainingResult:
    """Train a recipe's network with one method.

    Under `torchrun` every process calls this function; each processes its share of every batch,
    and rank 0 writes the files.

    Args:
        recipe: the recipe.
        method: one of [`snello.lab.methods.METHODS`][], such as "serene+neq".
        folder: folder for the checkpoint, the model file and `result.json`.
        splits: the data, if already loaded.
        resume: continue from the folder's checkpoint, or return its result if the run is finished.
            Settings that the method does not use (those of other methods and of shipping) may
            differ. The final weights equal those of an uninterrupted run, bit for bit on the CPU. A
            run may also be extended with other `epochs` or another `finetune`, if the finished
            epochs would have been the same. A run restarted by torchrun after a process failed
            resumes without this option.
        progress: called with a line of text after each epoch.
        matched: folder of the finished NEq run that `stochastic-star` imitates; default: `neq`
            next to `folder`.
        callbacks: further callbacks of Lightning, after snello's own.

    Raises:
        ConfigError: for an unknown method; for a folder that already holds a run while `resume`
            is false, that holds a run with another method or recipe (the message names the
            differences) or one that cannot be extended; for a folder in use by another process.
        OutputError: if the disk is full; the finished epochs are kept.
        Stopped: on SIGTERM or SIGINT in the main thread, after the current step; `resume` repeats
            the interrupted epoch. A second signal stops at once.
        SnelloError: for errors of the data, the model and the training.
    """
    replace(recipe, methods=(method,))  # validates the recipe for this method alone
    folder, resume = Path(folder), resume or restarted()
    with (
        StopSignals() as signals,
        claimed(folder, resume=resume),
        _going_on(recipe, folder, signals),
    ):
        return _train(recipe, method, folder, splits, resume, progress, matched, signals, callbacks)


def _train(
    recipe: Recipe,
    method: str,
    folder: Path,
    splits: Splits | None,
    resume: bool,
    progress: Progress | None,
    matched: str | Path | None,
    signals: StopSignals,
    callbacks: Sequence[L.Callback],
) -> TrainingResult:
    result_file, checkpoint = folder / RESULT, folder / CHECKPOINT
    done = finished_epochs(folder) if resume else 0
    if world().is_first:
        check_same_run(folder, recipe, method, resume=resume, done=done)
    if resume and result_file.is_file():
        result = TrainingResult.read(result_file)
        if len(result.epochs) >= recipe.epochs:
            return result
        _check_extensible(folder)
    selection = method_of(method).selection
    imitates = selection.imitates if selection else None
    imitated = _finished(Path(matched or folder.parent / imitates)) if imitates else None
    splits = splits or load_data(recipe)
    run = Run(recipe, method, splits, matched=imitated, progress=progress)
    trainer = run.trainer(folder, signals, list(callbacks))
    if run.world.is_first:  # only now: an error above must not leave a folder that looks started
        write_note(folder, recipe, method)
    rejoin(device_of(recipe))
    started = time.perf_counter()
    trainer.fit(
        run.task, run.batches.train, run.batches.validation,
        ckpt_path=checkpoint if done else None, weights_only=True,
    )  # fmt: skip
    signals.end_steps()
    seconds = time.perf_counter() - started
    if run.world.is_first:
        run.finish(folder, trainer, seconds)
    wait_for_all()
    return TrainingResult.read(result_file)


@contextmanager
def _going_on(recipe: Recipe, folder: Path, signals: StopSignals) -> Iterator[None]:
    """Add to the error of a stopped run the saved epochs and the way to resume.

    Raises:
        Stopped: after a signal.
        OutputError: if the disk is full.
    """
    try:
        yield
    except Halt:
        done = _saved_epochs(folder)
        saved = f"{done} of {recipe.epochs} epochs are saved in {folder}"
        raise Stopped(
            f"stopped at epoch {max(signals.epoch, done)}; continue with --resume ({saved})",
            signals.received,
        ) from None
    except OutputError as error:
        raise OutputError(f"{error}; {_kept(folder)}") from error
    except OSError as error:
        # Raised by a logger, for example; snello's own writers raise OutputError.
        if not is_full(error):
            raise
        free = shutil.disk_usage(folder).free
        raise OutputError(
            f"cannot write to the run folder {folder}: {error.strerror}; its disk has {free:,} "
            f"bytes free: make room there; {_kept(folder)}"
        ) from error


def _kept(folder: Path) -> str:
    done = _saved_epochs(folder)
    return (
        f"{done} finished epochs are kept in {folder}, continue with --resume"
        if done
        else "nothing is lost"
    )


def _saved_epochs(folder: Path) -> int:
    try:
        return finished_epochs(folder)
    except ModelError:
        return 0


def validate(recipe: Recipe, splits: Splits | None = None) -> Splits:
    """Check a recipe for all of its methods before the first training step.

    Loads the data, builds the model and runs it on two images, then builds and removes optimizer,
    schedule, sensitivity, pruner and probe of each method.

    Returns:
        The data.

    Raises:
        SnelloError: for the first error found.
    """
    splits = splits or load_data(recipe)
    for method in recipe.methods:
        Run(recipe, method, splits).check()
    return splits


def _finished(folder: Path) -> TrainingResult | None:
    path = folder / RESULT
    return TrainingResult.read(path) if path.is_file() else None


def _check_extensible(folder: Path) -> None:
    if not (folder / CHECKPOINT).is_file():
        raise ConfigError(
            f"{folder} holds a finished run without its {CHECKPOINT}, which is needed to train "
            "more epochs: choose another --out and start from its weights with "
            f"--weights={folder / MODEL}"
        )

"""One training run: a recipe, a method, a folder, resumed from the last finished epoch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from snello.errors import ConfigError, ModelError, OutputError, Stopped
from snello.files import is_full
from snello.lab.datasets import Splits
from snello.lab.methods import method_of

from ._config import Recipe
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
) -> TrainingResult:
    """Train a recipe's network with one method.

    Under ``torchrun`` every process calls this; the batch is dealt out among them, the first one
    writes.

    Args:
        recipe: what to do.
        method: one of :data:`snello.lab.methods.METHODS`, such as "serene+neq".
        folder: where checkpoint, model file and ``result.json`` go.
        splits: the data, if it is loaded already.
        resume: go on from the folder's checkpoint, or return its result if it is finished. Settings
            that this method does not read (another method's, those of shipping) may differ. The
            weights at the end are those of a run that was never interrupted, bit for bit on the
            CPU. With other ``epochs``, or another ``finetune`` of its method, a finished or stopped
            run goes on if it would have come to the same weights so far. A run that torchrun starts
            again after a process was lost resumes by itself.
        progress: called with a line of text after each epoch.
        matched: folder of the finished NEq run that ``stochastic-star`` imitates; default: ``neq``
            next to ``folder``.

    Raises:
        ConfigError: for an unknown method, for a folder that holds a run already while ``resume``
            is false, or one of another method or recipe, naming what differs, or one that cannot
            have so many epochs; and for a folder that another process has.
        OutputError: for a full disk; the finished epochs are kept.
        Stopped: for SIGTERM or SIGINT, in the main thread: the step was finished, and ``resume``
            trains the epoch that was under way again. A second signal is not waited for.
        SnelloError: for the errors of the data, the model and the training.
    """
    replace(recipe, methods=(method,))  # whether the recipe can be trained by this very method
    folder, resume = Path(folder), resume or restarted()
    with (
        StopSignals() as signals,
        claimed(folder, resume=resume),
        _going_on(recipe, folder, signals),
    ):
        return _train(recipe, method, folder, splits, resume, progress, matched, signals)


def _train(
    recipe: Recipe,
    method: str,
    folder: Path,
    splits: Splits | None,
    resume: bool,
    progress: Progress | None,
    matched: str | Path | None,
    signals: StopSignals,
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
    trainer = run.trainer(folder, signals)
    if run.world.is_first:  # not before: what was wrong until here has started no run
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
    """Say how to go on with a run that a signal or a full disk ends.

    Raises:
        Stopped: after a signal.
        OutputError: where there is no room.
    """
    try:
        yield
    except Halt:
        done = _saved_epochs(folder)
        saved = f"{done} of {recipe.epochs} epochs are saved in {folder}"
        raise Stopped(
            f"stopped at epoch {max(signals.epoch, done)}; go on with --resume ({saved})",
            signals.received,
        ) from None
    except OutputError as error:
        raise OutputError(f"{error}; {_kept(folder)}") from error
    except OSError as error:
        # A logger, say; what the run itself writes comes with a better message.
        if not is_full(error):
            raise
        free = shutil.disk_usage(folder).free
        raise OutputError(
            f"cannot write to the run folder {folder}: {error.strerror}; it has {free:,} bytes free: make room there; "
            f"{_kept(folder)}"
        ) from error


def _kept(folder: Path) -> str:
    done = _saved_epochs(folder)
    return (
        f"{done} finished epochs are kept in {folder}, go on with --resume"
        if done
        else "nothing is lost"
    )


def _saved_epochs(folder: Path) -> int:
    try:
        return finished_epochs(folder)
    except ModelError:
        return 0


def validate(recipe: Recipe, splits: Splits | None = None) -> Splits:
    """Check a recipe before the first training step, for all of its methods.

    Data are found and read, the model is built and run on two images, optimizer, schedule,
    sensitivities, pruners and probes are built and taken down again.

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


def _check_extensible(folder: Path) -> None:
    if not (folder / CHECKPOINT).is_file():
        raise ConfigError(
            f"{folder} holds a finished run without its {CHECKPOINT}, which more epochs would start from: choose "
            f"another --out, and start from its weights with --weights={folder / MODEL}"
        )

"""Opening of a study: its storage, sampler and pruner."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection

from snello.errors import ConfigError, OutputError

from ._choices import PRUNERS, SAMPLERS, Choices
from ._numbered import Numbered


def open_study(
    storage: str | Path,
    name: str,
    choices: Choices,
    *,
    epochs: int,
    seed: int,
    first: Mapping[str, Any] | None = None,
) -> optuna.Study:
    """Open a study of Optuna, or create it.

    Args:
        storage: path of a journal file, a database URL ("sqlite:///tune.db",
            "postgresql://user@host/db"), or "memory".
        name: of the study; a storage can hold several.
        choices: sampler, pruner and objective.
        epochs: epochs of a trial that is not pruned.
        seed: of the sampler.
        first: values of trial 0, such as a recipe's own; others are sampled.

    Raises:
        ConfigError: for a URL that no storage of Optuna takes, or a damaged journal.
        OutputError: for a journal file that cannot be written, or a database that does not answer.
    """

    def sampler(number: int) -> optuna.samplers.BaseSampler:
        with _quiet():
            made = SAMPLERS[choices.sampler](_mixed(seed, number))
            if number or not first:
                return made
            return optuna.samplers.PartialFixedSampler(dict(first), made)

    directions = [StudyDirection.MINIMIZE] * (2 if choices.front else 1)
    pruner = PRUNERS["none" if choices.front else choices.pruner](epochs)
    with _quiet():
        return optuna.create_study(
            storage=_storage(storage), study_name=name, load_if_exists=True, pruner=pruner,
            sampler=Numbered(sampler), directions=directions,
        )  # fmt: skip


def _mixed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**32


def _storage(given: str | Path) -> BaseStorage:
    text = str(given)
    if text == "memory":
        return InMemoryStorage()
    if "://" in text:
        return _database(text)
    # Absolute: the lock is a link to it, and Optuna waits for ever for the link of a killed process
    # if that leads nowhere, as a relative one does from within a folder.
    path = Path(text).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _journal(path)
    except OSError as error:
        raise OutputError(
            f"cannot write the study {text}: {error.strerror or error}; give another --storage"
        ) from error


def _journal(path: Path) -> BaseStorage:
    lock = JournalFileSymlinkLock(str(path))
    if path.is_file():
        lock.acquire()
        try:
            _cut_half_line(path)
        finally:
            lock.release()
    try:
        if path.is_file() and (lines := path.read_bytes().splitlines()):
            json.loads(lines[-1])  # of which Optuna says nothing before it writes
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError:
        raise
    except Exception as error:  # Optuna replays the lines as they are, so that anything may fail
        raise ConfigError(
            f"the study {path} is damaged, or no journal of Optuna ({type(error).__name__}: "
            f"{_short(error)}): restore it, or remove it and the folder of its trials"
        ) from error


def _cut_half_line(path: Path) -> None:
    """Remove half a line, as a full disk or a killed process leaves it.

    Optuna ignores it when it reads, but would write the next line behind it.
    """
    with path.open("rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def _database(url: str) -> BaseStorage:
    try:
        return optuna.storages.RDBStorage(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"--storage={url}: {_short(error)}") from error
    except Exception as error:  # of SQLAlchemy and of the database's driver, which may be any
        module = type(error).__module__
        kind = OutputError if "Operational" in type(error).__name__ else ConfigError
        if not module.startswith(("sqlalchemy", "optuna")):
            raise
        raise kind(
            f"--storage={url}: {_short(error)}; give a journal file (study.log) or a URL such as "
            "sqlite:///tune.db"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line about a new study, and its warnings about experimental parts."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)

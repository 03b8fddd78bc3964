"""Files appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snello.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which takes its name when the block ends without an error.

    Raises:
        OutputError: naming the path and the reason.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Let ``write`` fill a file that then takes the name ``path``; missing folders are made.

    Raises:
        OutputError: naming the path and the reason.
    """
    path = Path(path)
    _make_folder(path)
    with writing(path) as temporary:
        write(temporary)
    return path


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Find out before the work, not after it, that a file cannot be written; missing folders are made.

    Raises:
        OutputError: naming the path and the reason.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file in it")
    _make_folder(path)  # says which file it was for, as the trial below would not
    write_file(path.parent / f".{path.name}.try", lambda beside: beside.write_bytes(b"")).unlink()
    return path


def check_new_folder(path: str | os.PathLike[str]) -> Path:
    """Find out before the work that a folder can be made and holds nothing yet; its parents are made.

    Raises:
        OutputError: naming the path and the reason.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"cannot write {path}: it exists and is no empty folder; give another name")
    check_writable(path.parent / f".{path.name}.folder")
    return path


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, which takes its name when the block ends without an error.

    Raises:
        OutputError: naming the path and the reason; ``path`` may exist as an empty folder only.
    """
    try:
        _make_folder(path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            inside = Path(temporary) / "whole"
            inside.mkdir()
            yield inside
            inside.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _umask() -> int:
    # mkstemp makes files private; the result shall have the rights of any other new file.
    mask = os.umask(0)
    os.umask(mask)
    return mask

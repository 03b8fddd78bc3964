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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    with writing(path) as temporary:
        write(temporary)
    return path


def _umask() -> int:
    # mkstemp makes files private; the result shall have the rights of any other new file.
    mask = os.umask(0)
    os.umask(mask)
    return mask

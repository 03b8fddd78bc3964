"""Files appear whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snello.errors import OutputError

_TEMPORARY = ".tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No room on the device, in the user's quota, or under the limit on the size of one file."""


class NoRoomError(OSError):
    """A file that did not fit, by a writer that knows how large it would have become.

    Args:
        cause: the error of the operating system.
        needed: size of the whole file in bytes.
    """

    def __init__(self, cause: OSError, needed: int) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.needed = needed


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which takes its name when the block ends without an error.

    The file is synced before it is renamed, so that a crash of the machine leaves the old file or
    the new one.

    Raises:
        OutputError: naming the path and the reason; for a full disk also the folder, and what it
            needs.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
        os.close(handle)
    except OSError as error:
        raise OutputError(_cannot_write(path, error, 0)) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(_cannot_write(path, error, _size(temporary))) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_file(
    path: str | Path, write: Callable[[Path], Any], check: Callable[[Path], Any] | None = None
) -> Path:
    """Let ``write`` fill a file that then takes the name ``path``; missing folders are made.

    Args:
        path: of the file.
        write: called with the path of a temporary file beside it.
        check: called with the same path before the file takes its name; if it raises, the old file
            stays.

    Raises:
        OutputError: naming the path and the reason.
    """
    path = Path(path)
    _make_folder(path)
    with writing(path) as temporary:
        write(temporary)
        if check is not None:
            _sync(temporary)  # what is read back has been written, as far as the system can tell
            check(temporary)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8 and read it back before it takes the place of the old one.

    Raises:
        OutputError: naming the path and the reason.
    """
    data = text.encode()

    def check(beside: Path) -> None:
        if beside.read_bytes() != data:
            raise OutputError(
                f"cannot write {path}: other bytes are read back; the disk may be failing"
            )

    return write_file(path, lambda beside: beside.write_bytes(data), check)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Have other people's code put its temporary files into a folder, which has room, and not into
    $TMPDIR.

    For one thread: Python keeps the place for the whole process.
    """
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove the temporary files that writers of these names left in a folder when they were
    killed.

    Only for a folder that nobody else writes to.
    """
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*{_TEMPORARY}"):
            path.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Find out before the work, not after it, that a file cannot be written; missing folders are
    made.

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
    """Find out before the work that a folder can be made and holds nothing yet; its parents are
    made.

    Raises:
        OutputError: naming the path and the reason.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(
            f"cannot write {path}: it exists and is no empty folder; give another name"
        )
    check_writable(path.parent / f".{path.name}.folder")
    return path


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, which takes its name when the block ends without an
    error.

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
        raise OutputError(_cannot_write(path, error, 0)) from error


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(_cannot_write(path, error, 0)) from error


def is_full(error: OSError) -> bool:
    """Tell an error for want of room (disk, quota, limit on the size of a file) from others."""
    return error.errno in _FULL


def _cannot_write(path: Path, error: OSError, written: int) -> str:
    reason = f"cannot write {path}: {error.strerror or error}"
    if not is_full(error):
        return reason
    needs = (
        f"{error.needed:,} bytes"
        if isinstance(error, NoRoomError)
        else f"more than {written:,} bytes"
    )
    if error.errno == errno.EFBIG:
        way = ", more than the limit on the size of one file (ulimit -f): raise it"
    else:
        way = f"{_free(path.parent)}: make room there"
    return f"{reason}; the folder {path.parent} needs {needs} for it{way}"


def _free(folder: Path) -> str:
    try:
        return f", and its disk has {shutil.disk_usage(folder).free:,} free"
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sync(path: Path) -> None:
    """Have the system write a file or the entries of a folder to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems do not sync folders; they say so with EINVAL or ENOTSUP, and there is
        # nothing to do.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    # mkstemp makes files private; the result shall have the rights of any other new file.
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Atomic files: written under a temporary name, synced, then renamed; and reading of JSON."""

from __future__ import annotations

import errno
import getpass
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConfigError, OutputError, SnelloError

_TEMPORARY = ".tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No room on the device, in the user's quota, or under the limit on the size of one file."""


class NoRoomError(OSError):
    """A file that did not fit, with the size that it would have had.

    Args:
        cause: the error of the operating system.
        needed: size of the whole file in bytes.
    """

    def __init__(self, cause: OSError, needed: int) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.needed = needed


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path`, renamed to it when the block ends without error.

    The file is synced before it is renamed, so that a crash of the machine leaves the old file or
    the new one.

    Raises:
        OutputError: naming the path and the reason; for a full disk also the folder and the size
            needed.
    """
    temporary = _beside(path)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        # The new name is an entry of the folder, which has to be synced as well.
        _sync(path.parent)
    except OSError as error:
        raise OutputError(_cannot_write(path, error, _size(temporary))) from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """An empty temporary file of its own for every call, in the folder of `path`."""
    try:
        # In the same folder, hence on the same disk: only then is the rename atomic.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
    except OSError as error:
        raise OutputError(_cannot_write(path, error, 0)) from error
    os.close(handle)
    return Path(name)


def write_file(
    path: str | Path, write: Callable[[Path], Any], check: Callable[[Path], Any] | None = None
) -> Path:
    """Let `write` fill a temporary file, and rename it to `path`; missing folders are made.

    Args:
        path: of the file.
        write: called with the path of a temporary file in the same folder.
        check: called with the same path before the file is renamed; if it raises, an old file
            stays.

    Raises:
        OutputError: naming the path and the reason.
    """
    path = Path(path)
    _make_folder(path)
    with writing(path) as temporary:
        write(temporary)
        if check is not None:
            _sync(temporary)  # so that the check reads from the disk, as far as the system allows
            check(temporary)
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file, and read it back before it replaces an old one.

    Raises:
        OutputError: naming the path and the reason.
    """

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


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, as by `write_bytes`."""
    return write_bytes(path, text.encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Content of a JSON file in UTF-8, or in UTF-16 or UTF-32 as some editors write it.

    Raises:
        ConfigError: naming the path, if it cannot be read or is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def read_json_object(
    path: str | os.PathLike[str], remedy: str = "", kind: type[SnelloError] = ConfigError
) -> dict[str, Any]:
    """Content of a JSON file that is an object: values by name.

    Args:
        path: of the file.
        remedy: what to do if the file is damaged, for the message.
        kind: class of the errors.

    Raises:
        SnelloError: of this kind, naming the path, if it cannot be read, is not valid JSON, or is
            no object.
    """
    try:
        found = read_json(path)
    except ConfigError as error:
        damaged = not isinstance(error.__cause__, OSError)
        raise kind(f"{error}{_instead(remedy) if damaged else ''}") from error
    if not isinstance(found, dict):
        raise kind(f"{path} is a JSON {type(found).__name__}, not an object{_instead(remedy)}")
    return found


def _instead(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Make Python's temporary files go into `folder` instead of $TMPDIR, which may be small.

    Not for use from several threads: Python has one such place per process.
    """
    # torch keeps compiled kernels in the place of temporary files; they are to outlast the block.
    own = "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    if own:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = _inductor_cache()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if own:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]


def _inductor_cache() -> str:
    """The folder that torch would use outside the block."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = str(os.getuid())
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{user}")


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove temporary files of these names, left in a folder by processes that were killed.

    No other process may be writing to the folder.
    """
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*{_TEMPORARY}"):
            path.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Raise an error if a file cannot be written, before the work for it; folders are made.

    Raises:
        OutputError: naming the path and the reason.
    """
    path = Path(path)
    check_no_folder(path)
    _make_folder(path)
    _beside(path).unlink(missing_ok=True)
    return path


def check_no_folder(path: str | os.PathLike[str]) -> None:
    """Raise an error if a file is to be written in the place of a folder.

    Raises:
        OutputError: naming the path.
    """
    if Path(path).is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file in it")


def check_new_folder(path: str | os.PathLike[str]) -> Path:
    """Raise an error if a folder cannot be made or is not empty; its parents are made.

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
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as `path`, so that its files can be renamed to it.

    Raises:
        OutputError: of the block, with the temporary folder's parent in its place.
    """
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
        _called(path.parent, folder),
    ):
        yield Path(folder)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `path` when the block ends without an error.

    Raises:
        OutputError: naming the path and the reason; `path` may exist as an empty folder only.
    """
    try:
        _make_folder(path)
        with folder_beside(path) as temporary:
            inside = temporary / "whole"
            inside.mkdir()
            with _called(path, str(inside)):
                yield inside
            inside.replace(path)
    except OSError as error:
        raise OutputError(_cannot_write(path, error, 0)) from error


@contextmanager
def _called(path: Path, temporary: str) -> Iterator[None]:
    """Name a folder in errors by its path, not by a temporary name that no user knows."""
    try:
        yield
    except OutputError as error:
        raise OutputError(str(error).replace(temporary, str(path))) from error


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(_cannot_write(path, error, 0)) from error


def is_full(error: OSError) -> bool:
    """Return true for errors of missing space: disk, quota, or limit on the size of a file."""
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
    """Make the system write a file, or the entries of a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open folders
    try:
        os.fsync(handle)
    except OSError as error:
        # File systems that cannot sync folders report EINVAL or ENOTSUP, which is harmless.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    # mkstemp makes files private; the result gets the permissions of any other new file.
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Folders searched for datasets, and the cache of unpacked archives."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snello.errors import DataError

VARIABLE = "SNELLO_DATA"


@dataclass(frozen=True)
class Request:
    """Arguments of [`snello.lab.datasets.load_dataset`][] that are passed to a reader."""

    roots: tuple[Path, ...]
    path: Path
    image_size: int | None
    download: bool


def roots(root: str | Path | None) -> tuple[Path, ...]:
    """The folders to search: the given one, else those of SNELLO_DATA, else `./data`."""
    if root is not None:
        return (Path(root).expanduser(),)
    listed = os.environ.get(VARIABLE, "").split(os.pathsep)
    return tuple(Path(folder).expanduser() for folder in listed if folder) or (Path("data"),)


def missing(
    what: str, places: Sequence[Path], first_root: Path, source: str | None = None
) -> DataError:
    """Build the error for a missing dataset: the searched places and the options to set.

    Args:
        what: description of the dataset and its files.
        places: the paths that were searched.
        first_root: folder that a download would be written to.
        source: instructions to obtain a dataset that snello does not download; None if it does.
    """
    looked = ", ".join(str(place.absolute()) for place in places)
    fetch = (
        f"To fetch it into {first_root.absolute()}, run a recipe with --data.download=true, or pass "
        "download=True in Python."
        if source is None
        else f"It is not downloaded automatically: {source}."
    )
    return DataError(
        f"{what} was not found. Looked for: {looked}. "
        f"If you have it, set the folder that contains it: with the environment variable "
        f"{VARIABLE}=/that/folder or with --data-root=/that/folder (in a recipe --data.root, in Python root=). {fetch}"
    )


def cache_folder() -> Path:
    """$SNELLO_CACHE, else $XDG_CACHE_HOME/snello, else ~/.cache/snello."""
    if own := os.environ.get("SNELLO_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "snello"


def unpacked(archive: Path) -> Path:
    """The folder with an archive's contents, unpacked on first use.

    The folder's name contains the archive's SHA-256, so that a changed archive is unpacked again.

    Raises:
        DataError: if the archive is damaged or has members outside its folder, or the cache cannot
            be written. A partially unpacked folder is removed.
    """
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        target = cache_folder() / f"{archive.name.partition('.')[0]}-{digest[:16]}"
        if not target.is_dir():
            _unpack_atomically(archive, target)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DataError(
            f"{archive} cannot be unpacked: {error}; copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{archive} cannot be unpacked into {cache_folder()}: {error}; if the cache is not "
            "writable, set SNELLO_CACHE to another folder; if the archive is damaged, copy or "
            "download it again"
        ) from error
    return target


def _unpack_atomically(archive: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with tarfile.open(archive) as tar:
            # An untrusted archive could write elsewhere: the "data" filter refuses absolute paths,
            # "..", links that leave the folder, and devices.
            tar.extractall(temporary, filter="data")
        try:
            temporary.rename(target)
        except OSError:
            # Another process may have unpacked the same archive first; its copy is equivalent.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Trials claimed by a lock of the operating system, which ends with its process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snello.errors import OutputError
from snello.search.locks import claimed

PLACE = "place"
"""Attribute of a trial: the machine and the folder in which it runs."""


class Claims:
    """Locks on the trials that run in one folder of one machine.

    Args:
        folder: for the lock files; None: trials are not claimed, and never taken over.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.place = None if folder is None else f"{socket.gethostname()}:{folder.resolve()}"
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error

    @contextmanager
    def claimed(self, number: int) -> Iterator[bool]:
        """Claim a trial for a block; yields False if another process holds it."""
        if self._folder is None:
            yield True
            return
        with claimed(self._folder / f"{number}.lock") as mine:
            yield mine

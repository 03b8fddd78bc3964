"""Work that one of several processes does, claimed by a lock that ends with its process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock  # torch depends on it


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock for a block; yields False, without waiting, if another process holds it.

    Args:
        path: the lock file, which stays.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()

"""Saving of networks that took long to compute."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from snello.errors import OutputError


def save_or_rescue(out: Path, *content: Any, **options: Any) -> Path:
    """Save a network as [`snello.save`][snello.store.save] does, or else in a temporary folder.

    A disk that became full during the work would lose it.

    Raises:
        OutputError: if the network cannot be saved at `out`; the message says where it is instead.
    """
    from snello.store import save

    try:
        return save(out, *content, **options)
    except OutputError as error:
        folder = Path(tempfile.mkdtemp(prefix="snello-"))
        try:
            other = save(folder / out.name, *content, **options)
        except OutputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise error from None
        raise OutputError(f"{error}; the network was saved as {other} instead") from error

"""Small datasets that torchvision reads and downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snello.errors import DataError, reason_of, require


def from_torchvision(kind: str, root: Path, train: bool, download: bool) -> Any:
    """Read one part of a torchvision dataset.

    Raises:
        DataError: if it cannot be read or downloaded; the message has torchvision's reason.
    """
    datasets = require("torchvision.datasets", "train", f"reading {kind}")
    try:
        return getattr(datasets, kind)(root, train=train, download=download)
    except Exception as error:  # AssertionError, RuntimeError, URLError … for bad files
        doing = "fetched into" if download else "read from"
        raise DataError(
            f"{kind} cannot be {doing} {root.absolute()}: {reason_of(error)}; remove the damaged files there "
            "and pass --data.download=true (download=True in Python), or copy the dataset there"
        ) from error

"""Facts about the images in exported files, as every format has to keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snello.deploy import format_of


def check_read_as_written(path: Path, facts: dict[str, Any]) -> None:
    """Add facts to a file without any, read them, and add to them."""
    format = format_of(path)
    assert format.metadata(path) == {}
    assert format.add_metadata(path, facts)
    assert format.metadata(path) == facts
    assert format.add_metadata(path, {"mean": [0.25]})
    assert format.metadata(path) == facts | {"mean": [0.25]}

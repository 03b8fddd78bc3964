"""Warnings of snello as lines of the command, without a place in its source."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ._inputs import warn

SOURCE = Path(__file__).parents[1]


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print the warnings that snello's own code raises as `snello: warning: ...`."""
    with warnings.catch_warnings():
        plain = warnings.showwarning

        def show(
            message: Warning | str, category: type[Warning], filename: str, lineno: int,
            file: TextIO | None = None, line: str | None = None,
        ) -> None:  # fmt: skip
            if Path(filename).is_relative_to(SOURCE):
                warn(str(message))
            else:
                plain(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield

"""Conversion of SIGTERM into an exception, so that no partially written file is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from snello.errors import Stopped


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """Raise [`Stopped`][snello.errors.Stopped] on SIGTERM; a second SIGTERM ends the process.

    Raises:
        Stopped: on the first SIGTERM, unless the process has a handler of its own.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped("stopped by SIGTERM", number)


def is_speaker() -> bool:
    """Return True for the process that reports a stop: rank 0 under torchrun."""
    return os.environ.get("RANK", "0") == "0"

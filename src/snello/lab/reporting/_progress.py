"""Progress on the terminal: permanent lines of text above a progress bar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from snello.errors import require

PERIOD = 15.0
"""Seconds between two signs of life where there is no terminal: a log stays short."""


@contextmanager
def progress(total: int) -> Iterator[Callable[..., None]]:
    """Show a bar over `total` steps; yields a function that prints a line and advances the bar.

    With `done=False` it prints the line only: an epoch within a step.

    Without a terminal the lines are printed unbuffered, and once a period a line with the number of
    finished steps, the time taken and the time left.

    Args:
        total: number of steps; 0 if it is not known.
    """
    console = _console()
    if not console.is_terminal:
        pace = _Pace(total)
        with _every_period(lambda: console.print(pace.text(), markup=False)):

            def said(text: str, *, done: bool = True) -> None:
                console.print(text, markup=False)
                pace.done += done

            yield said
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total or None)

        def line(text: str, *, done: bool = True) -> None:
            console.print(text, markup=False)
            bar.advance(task, int(done))

        yield line


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner during one long step; without a terminal, print a line once a period."""
    console = _console()
    if console.is_terminal:
        with console.status(what):
            yield
        return
    pace = _Pace(0)
    with _every_period(lambda: console.print(f"{what}: {pace.text()}", markup=False)):
        yield


def _console() -> Any:
    require("rich", "report", "drawing progress bars")
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


class _Pace:
    """Steps that are done, and the time that they took."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._start = time.monotonic()

    def text(self) -> str:
        """`"3 of 12 steps, 1:30 min, 30.0 s a step, about 4:30 min left"`."""
        seconds = time.monotonic() - self._start
        if not self.done:
            return f"{_clock(seconds)} so far"
        steps = f"{self.done} of {self.total} steps" if self.total else f"{self.done} steps"
        if self.done >= self.total:
            return f"{steps}, {_clock(seconds)} so far"
        pace = seconds / self.done
        left = (self.total - self.done) * pace
        return f"{steps}, {_clock(seconds)}, {pace:.1f} s a step, about {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


@contextmanager
def _every_period(say: Callable[[], None]) -> Iterator[None]:
    """Call a function every `PERIOD` seconds, in a thread, until the block ends."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(PERIOD):
            say()

    thread = threading.Thread(target=beat, name="snello progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

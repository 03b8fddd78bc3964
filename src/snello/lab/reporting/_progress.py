"""Progress on the terminal: permanent lines of text above a progress bar."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from snello.errors import require

PERIOD = 15.0
"""Seconds until the first sign of life where there is no terminal; each pause is that much longer
than the last one, so that the log of hours stays short."""


@contextmanager
def progress(total: int, unit: str = "step", before: int = 0) -> Iterator[Callable[..., None]]:
    """Show a bar over `total` steps; yields a function that prints a line and advances the bar.

    With `done=False` it prints the line only: an epoch within a step. So it does behind the last
    step, for what follows these.

    Without a terminal the lines are printed unbuffered, and between them, at growing intervals, the
    number of finished steps, the time taken and the time left.

    Args:
        total: number of steps; 0 if it is not known.
        unit: what a step is, such as "epoch".
        before: how many of them an earlier attempt has finished; they took no time of this one.
    """
    console = _console()
    if not console.is_terminal:
        pace = _Pace(total, unit, before)
        with _every_period(lambda: console.print(pace.text(), markup=False)):

            def said(text: str, *, done: bool = True) -> None:
                console.print(text, markup=False)
                if done:
                    pace.finish_step()

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
        task = bar.add_task("", total=total or None, completed=before)

        def line(text: str, *, done: bool = True) -> None:
            console.print(text, markup=False)
            bar.advance(task, int(done and not bar.tasks[task].finished))

        yield line


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner during one long step; without a terminal, print a line now and then."""
    console = _console()
    if console.is_terminal:
        with console.status(what):
            yield
        return
    pace = _Pace(0, "step")
    with _every_period(lambda: console.print(f"{what}: {pace.text()}", markup=False)):
        yield


def _console() -> Any:
    require("rich", "report", "drawing progress bars")
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


class _Pace:
    """Steps that are done, and the time that they took."""

    def __init__(self, total: int, unit: str, before: int = 0) -> None:
        self.total, self.unit, self.before, self.done = total, unit, before, before
        self._start = self._last = time.monotonic()

    def finish_step(self) -> None:
        """Count a step, unless all are done."""
        if not self.total or self.done < self.total:
            self.done, self._last = self.done + 1, time.monotonic()

    def text(self) -> str:
        """`"3 of 12 epochs, 1:30 min, 30.0 s each, about 4:30 min left"`."""
        now = time.monotonic()
        seconds = now - self._start
        if self.done == self.before:
            return f"{_clock(seconds)} so far"
        count = f"{self.done} of {self.total}" if self.total else f"{self.done}"
        steps = f"{count} {self.unit}s"
        if self.done >= self.total:
            return f"{steps}, {_clock(seconds)} so far"
        # The time since the last finished step belongs to the next one.
        pace = (self._last - self._start) / (self.done - self.before)
        left = max(0.0, (self.total - self.done) * pace - (now - self._last))
        return f"{steps}, {_clock(seconds)}, {pace:.1f} s each, about {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


@contextmanager
def _every_period(say: Callable[[], None]) -> Iterator[None]:
    """Call a function after `PERIOD` seconds, then after twice as many, and so on, in a thread."""
    over = threading.Event()

    def beat() -> None:
        pauses = itertools.count(PERIOD, PERIOD)
        while not over.wait(next(pauses)):
            say()

    thread = threading.Thread(target=beat, name="snello progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

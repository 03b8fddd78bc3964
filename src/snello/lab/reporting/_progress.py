"""Progress on the terminal: permanent lines of text above a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snello.errors import require


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar over ``total`` steps; yields a function that prints a line and advances the bar.

    Without a terminal only the lines are printed, unbuffered.
    """
    require("rich", "report", "drawing progress bars")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda text: console.print(text, markup=False)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def line(text: str) -> None:
            console.print(text, markup=False)
            bar.advance(task)

        yield line


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner during one long step; without a terminal, nothing."""
    require("rich", "report", "drawing progress bars")
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield

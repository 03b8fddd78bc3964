"""Progress: lines that stay, and a bar below them while the work goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snello.errors import require


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar over ``total`` steps; the function that it yields prints a line and advances the bar.

    Where there is no terminal, the lines alone are printed, each as soon as it is there.
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
    """A spinner while one long step goes on; nothing where there is no terminal."""
    require("rich", "report", "drawing progress bars")
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield

"""Tables: drawn on the terminal or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from snello.errors import require


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        title: one line above it.
        header: names of the columns; the first column is aligned left, all others right.
        rows: as many texts each as there are columns.
        note: the conditions under which the numbers were measured.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def show(table: Table) -> None:
    """Draw a table on the terminal."""
    require("rich", "report", "drawing tables")
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    # Square brackets are units here, not rich's markup.
    drawn = RichTable(
        title=escape(table.title), title_justify="left",
        box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for number, name in enumerate(table.header):
        drawn.add_column(escape(name), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:  # piped into a file there is no screen to fit
        console = Console(width=100)
    console.print(drawn)
    if table.note:  # below it and not rich's caption, which wraps at the width of a narrow table
        console.print(
            table.note,
            style="table.caption",
            markup=False,
            highlight=False,
            soft_wrap=not console.is_terminal,
        )


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown, with its title above and its note below."""
    lines = [
        f"### {table.title}",
        "",
        "| " + " | ".join(name.replace("\n", " ") for name in table.header) + " |",
        "|"
        + "|".join("---" if not number else "---:" for number in range(len(table.header)))
        + "|",
        *("| " + " | ".join(_cell(text) for text in row) + " |" for row in table.rows),
    ]
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")

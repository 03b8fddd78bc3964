"""Tables of text, printed on the terminal or written as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from snello.errors import require


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        title: one line above the table.
        header: names of the columns; the first column is left-aligned, all others right-aligned.
        rows: one tuple of cells per row, as long as the header.
        note: measurement conditions, shown below the table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def show(table: Table) -> None:
    """Print a table on the terminal."""
    require("rich", "report", "drawing tables")
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    # escape: rich would read units in square brackets as markup.
    drawn = RichTable(
        title=escape(table.title), title_justify="left",
        box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for number, name in enumerate(table.header):
        drawn.add_column(escape(name), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    console = Console(emoji=False)  # the name of a factory, "pets:net:", is no emoji
    if not console.is_terminal:  # rich would assume 80 columns and wrap the cells
        console = Console(width=100, emoji=False)
    console.print(drawn)
    if table.note:  # printed separately: rich wraps a caption at the width of the table
        console.print(
            table.note,
            style="table.caption",
            markup=False,
            highlight=False,
            soft_wrap=not console.is_terminal,
        )


def markdown(table: Table) -> str:
    """A table in GitHub-flavoured Markdown, with its title above and its note below."""
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

"""A page that compares the figures of several runs."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from .page import environment, read_figures, template


def comparison(folder: str | Path) -> str | None:
    """A page with a row for each page of a run below a folder, and a column for each figure.

    Args:
        folder: the folder; other HTML files in it are left out.

    Returns:
        The page as HTML; None if there is no page of a run.
    """
    folder = Path(folder)
    runs = []
    for path in sorted(folder.rglob("*.html")):
        if (found := read_figures(path)) is not None:
            title, figures = found
            link = quote(path.relative_to(folder).as_posix())
            runs.append((link, title, {figure.label: figure for figure in figures}))
    if not runs:
        return None
    labels = list(dict.fromkeys(label for *_, figures in runs for label in figures))
    return (
        environment()
        .from_string(template("comparison.html.jinja"))
        .render(folder=folder.resolve().name, runs=runs, labels=labels)
    )

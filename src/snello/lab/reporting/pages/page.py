"""A page of HTML and its parts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello._version import __version__
from snello.errors import ConfigError, require
from snello.files import write_text
from snello.lab.reporting._tables import Table
from snello.lab.reporting._values import as_json, plain

if TYPE_CHECKING:
    from jinja2 import Environment

LIBRARIES = ("torch", "lightning", "onnxruntime", "nncodec")
"""Libraries whose versions a page names, if they are installed."""


@dataclass(frozen=True)
class Figure:
    """A large number, before and after.

    Attributes:
        label: name of the quantity, with its unit.
        before: its value before; empty if there is none.
        after: its value after.
        note: how the two compare, or another remark.
    """

    label: str
    before: str
    after: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart in Vega-Lite.

    Attributes:
        title: heading.
        spec: specification without size and colours, which the page chooses.
        note: conditions, below the chart.
    """

    title: str
    spec: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The report of one run.

    Attributes:
        title: heading.
        summary: one or two sentences below it.
        figures: large numbers.
        charts: charts, in order.
        tables: tables, in order.
        data: all results, embedded as JSON.
    """

    title: str
    summary: str
    figures: tuple[Figure, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    data: Any = None


def write_page(page: Page, path: str | Path) -> Path:
    """Write a page as one HTML file, which needs no network and no other file.

    Args:
        page: the content.
        path: HTML file to write, atomically.

    Returns:
        The path.

    Raises:
        OutputError: if the file cannot be written.
        MissingExtraError: without Jinja2 and vl-convert (extra `report`).
    """
    check_libraries()
    text = (
        environment()
        .from_string(template("page.html.jinja"))
        .render(
            page=page,
            tables=_tables(page.tables),
            charts=[_embedded(chart.spec) for chart in page.charts],
            data=_escaped(as_json(page.data)),
            figures=_escaped(as_json({"title": page.title, "figures": page.figures})),
            scripts=_scripts() if page.charts else "",
            command=_command(),
            versions=_versions(),
        )
    )
    return write_text(Path(path), text)


def add_to_page(path: str | Path, tables: Sequence[Table], data: Any) -> Path:
    """Add tables to a page that [`write_page`][snello.lab.reporting.pages.write_page] wrote.

    Tables of an earlier call are replaced.

    Args:
        path: HTML file of the page.
        tables: tables to show after those of the page.
        data: all results, embedded as JSON in place of the page's.

    Returns:
        The path.

    Raises:
        ConfigError: if the file is not such a page.
        OutputError: if the file cannot be written.
        MissingExtraError: without Jinja2 (extra `report`).
    """
    path = Path(path)
    parts = {
        r'(<section id="added">).*?(</section>)': _tables(tables),
        r'(<script type="application/json" id="report">).*?(</script>)': _escaped(as_json(data)),
    }
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    for pattern, content in parts.items():
        found = re.search(pattern, text, flags=re.S)
        if found is None:
            raise ConfigError(f"{path} is not a page of this version of snello: write it once more")
        text = text[: found.end(1)] + content + text[found.start(2) :]
    return write_text(path, text)


def _tables(tables: Sequence[Table]) -> str:
    found: str = environment().from_string(template("tables.html.jinja")).render(tables=tables)
    return found


def check_libraries() -> None:
    """Check that pages can be written, before the work that they report.

    Raises:
        MissingExtraError: without Jinja2 or vl-convert (extra `report`).
    """
    environment()
    require("vl_convert", "report", "drawing the charts of report.html")


def read_figures(path: str | Path) -> tuple[str, tuple[Figure, ...]] | None:
    """The title and the figures of a page that
    [`write_page`][snello.lab.reporting.pages.write_page] wrote.

    Returns:
        Both; None for another file.
    """
    text = Path(path).read_text("utf-8", "replace")  # other pages have other encodings
    found = re.search(r'id="figures">(.*?)</script>', text, flags=re.S)
    if found is None:
        return None
    try:
        content = json.loads(found[1])
        return str(content["title"]), tuple(Figure(**figure) for figure in content["figures"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def environment() -> Environment:
    """Jinja's environment, which escapes all text.

    Raises:
        MissingExtraError: without Jinja2 (extra `report`).
    """
    require("jinja2", "report", "writing report.html")
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def template(name: str) -> str:
    """The text of a template of this package."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _embedded(spec: Mapping[str, Any]) -> str:
    return _escaped(json.dumps(plain({"width": "container", "height": 260, **spec})))


def _escaped(text: str) -> str:
    """JSON that cannot end the script element that holds it."""
    return text.replace("<", "\\u003c")


@cache
def _scripts() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the package vl-convert."""
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return text.replace("</script", "<\\/script")


def _command() -> str:
    """The command line that this process was started with; empty outside of the command."""
    if Path(sys.argv[0]).name not in ("snello", "__main__.py"):
        return ""
    return " ".join(["snello", *sys.argv[1:]])


def _versions() -> str:
    found = [f"snello {__version__}", f"Python {sys.version.split()[0]}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)

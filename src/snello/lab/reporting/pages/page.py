"""A page of HTML and its parts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from snello._version import __version__
from snello.errors import require
from snello.files import write_text
from snello.lab.reporting._tables import Table
from snello.lab.reporting._values import as_json

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
    require("jinja2", "report", "writing report.html")
    require("vl_convert", "report", "drawing the charts of report.html")
    from jinja2 import Environment, StrictUndefined

    template = resources.files(__package__).joinpath("page.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = environment.from_string(template).render(
        page=page,
        charts=[_embedded(chart.spec) for chart in page.charts],
        data=_escaped(as_json(page.data)),
        scripts=_scripts() if page.charts else "",
        command=_command(),
        versions=_versions(),
    )
    return write_text(Path(path), text)


def _embedded(spec: Mapping[str, Any]) -> str:
    return _escaped(json.dumps({"width": "container", "height": 260, **spec}))


def _escaped(text: str) -> str:
    """JSON that cannot end the script element that holds it."""
    return text.replace("<", "\\u003c")


@cache
def _scripts() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the package vl-convert."""
    import vl_convert

    text: str = vl_convert.javascript_bundle()
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

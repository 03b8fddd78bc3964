"""Charts as Vega-Lite specifications: lines over epochs, fronts, bars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .page import Chart

Rows = Sequence[Mapping[str, Any]]

NUMBER = "format(datum.value, abs(datum.value) < 1000 ? '~r' : '~s')"
"""Labels of an axis: SI prefixes for thousands, but 0.002 MB and not 2m MB."""


def lines(
    title: str, rows: Rows, x: str, y: str, *, by: str, log: bool = False, form: str = "",
    x_form: str = "",
) -> Chart:  # fmt: skip
    """Lines with a point at every value; the value under the pointer is shown.

    Args:
        title: heading.
        rows: one mapping per point.
        x: column of the horizontal axis, and its title.
        y: column of the vertical axis, and its title.
        by: column that tells the lines apart.
        log: logarithmic vertical axis.
        form: format of the vertical axis, such as "%".
        x_form: format of the horizontal axis; without it, ticks are whole numbers.
    """
    scale = {"type": "log", "nice": False} if log else {"zero": False}
    return Chart(
        title,
        {
            "data": {"values": list(rows)},
            "mark": {"type": "line", "point": True, "tooltip": True},
            "encoding": {
                "x": {
                    "field": _field(x), "type": "quantitative", "title": x,
                    "axis": {"format": x_form} if x_form else {"tickMinStep": 1},
                },
                "y": {
                    "field": _field(y), "type": "quantitative", "title": y, "scale": scale,
                    "axis": {"format": form} if form else {},
                },
                "color": {"field": _field(by), "type": "nominal", "sort": None},
                "tooltip": [{"field": _field(name), "title": name} for name in (by, x, y)],
            },
        },
    )  # fmt: skip


def front(
    title: str, rows: Rows, x: str, y: str, *, label: str, note: str = "", form: str = ""
) -> Chart:
    """Points with their names: what is given up for what.

    Args:
        title: heading.
        rows: one mapping per point; all of its columns are shown under the pointer.
        x: column of the horizontal axis.
        y: column of the vertical axis, a share in [0, 1].
        label: column with the names.
        note: conditions.
        form: format of the horizontal axis, such as "%".
    """
    position = {
        "x": {
            "field": _field(x), "type": "quantitative", "title": x,
            "axis": {"tickCount": 6, **({"format": form} if form else {"labelExpr": NUMBER})},
            "scale": {"zero": False, "padding": 30},
        },
        "y": {
            "field": _field(y), "type": "quantitative", "title": y, "axis": {"format": ".1%"},
            "scale": {"zero": False, "padding": 15},
        },
    }  # fmt: skip
    tooltip = [{"field": _field(name), "title": name} for name in (rows[0] if rows else {})]
    return Chart(
        title,
        {
            "data": {"values": list(rows)},
            "encoding": position,
            "layer": [
                {
                    "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                    "encoding": {
                        "color": {
                            "field": _field(label),
                            "type": "nominal",
                            "legend": None,
                            "sort": None,
                        },
                        "tooltip": tooltip,
                    },
                },
                {
                    "mark": {"type": "text", "dy": -12},
                    "encoding": {"text": {"field": _field(label), "type": "nominal"}},
                },
            ],
        },
        note,
    )


def bars(title: str, rows: Rows, names: str, value: str, *, by: str, note: str = "") -> Chart:
    """Horizontal bars, side by side for each name.

    Args:
        title: heading.
        rows: one mapping per bar.
        names: column with the names, in the order of the rows.
        value: column with the lengths.
        by: column that tells the bars of one name apart, in the order of the rows.
        note: conditions.
    """
    kinds = list(dict.fromkeys(row[by] for row in rows))
    count = len({row[names] for row in rows})
    return Chart(
        title,
        {
            "data": {"values": list(rows)},
            "height": max(60, count * (8 + 10 * len(kinds))),
            "mark": {"type": "bar", "tooltip": True},
            "encoding": {
                "y": {
                    "field": _field(names), "type": "nominal", "sort": None, "title": None,
                    "axis": {"labelLimit": 160},
                },
                "x": {
                    "field": _field(value), "type": "quantitative", "title": value,
                    "axis": {"tickCount": 5, "labelExpr": NUMBER},
                },
                "yOffset": {"field": _field(by), "sort": kinds},
                "color": {"field": _field(by), "type": "nominal", "sort": kinds},
                "tooltip": [{"field": _field(name), "title": name} for name in (names, by, value)],
            },
        },
        note,
    )  # fmt: skip


def histogram(title: str, values: Tensor, name: str, *, bins: int = 50) -> Chart:
    """Numbers of values in intervals of equal width.

    Args:
        title: heading.
        values: the values, any shape; those that are not finite are left out.
        name: title of the horizontal axis.
        bins: number of intervals.
    """
    finite = values.detach().double().flatten()
    finite = finite[finite.isfinite()]
    counts, edges = torch.histogram(finite.cpu(), bins)
    return counted(title, edges.tolist(), [int(count) for count in counts], name)


def counted(
    title: str, edges: Sequence[float], counts: Sequence[int], name: str, *, note: str = ""
) -> Chart:
    """A histogram whose values have been counted.

    Args:
        title: heading.
        edges: edges of the intervals, one more than counts.
        counts: numbers of values.
        name: title of the horizontal axis.
        note: conditions.
    """
    rows = [
        {"from": low, "to": high, "count": count}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return Chart(
        title,
        {
            "data": {"values": rows},
            "height": 160,
            "mark": {"type": "bar", "tooltip": True},
            "encoding": {
                "x": {
                    "field": "from",
                    "type": "quantitative",
                    "bin": {"binned": True},
                    "title": name,
                },
                "x2": {"field": "to"},
                "y": {"field": "count", "type": "quantitative", "title": "count"},
            },
        },
        note,
    )


def _field(name: str) -> str:
    """The name of a column for Vega-Lite, which reads brackets and points as paths.

    Raises:
        ValueError: for a name with a quote, which Vega-Lite cannot address: nothing would be drawn.
    """
    if {"'", '"'} & set(name):
        raise ValueError(f"the column {name!r} contains a quote")
    return re.sub(r"([\[\].])", r"\\\1", name)

"""The page of a search for the cheapest network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from snello.lab.reporting._shrink import channels_left, state_of
from snello.lab.reporting._tables import Table
from snello.lab.reporting._values import number, percent

from .charts import bars, front
from .page import Chart, Figure, Page

if TYPE_CHECKING:
    from snello.search.shrink import Candidate, Shrunk

AXES = {
    "latency [ms]": "latency_ms",
    "bytes": "bytes",
    "multiply-accumulates": "macs",
    "peak memory [bytes]": "memory",
}
"""Title of a horizontal axis -> attribute of a candidate."""


def shrink_page(title: str, found: Shrunk, table: Table) -> Page:
    """The page: fronts, widths before and after, predicted against measured cost.

    Args:
        title: heading.
        found: the search.
        table: its candidates.
    """
    charts = [chart for axis, name in AXES.items() if (chart := _front(found, axis, name))]
    charts += [chart for chart in (_predicted(found), _widths(found)) if chart is not None]
    return Page(
        title, _summary(found), _figures(found), tuple(charts), (table, *_layers(found)),
        shrink_data(found),
    )  # fmt: skip


def shrink_data(found: Shrunk) -> dict[str, Any]:
    """All results of a search as data for `json`."""
    qp = {} if found.settings is None else dict(found.settings.qp_of)
    return {
        "candidates": [{"key": c.key, "state": state_of(found, c), **c.to_json()} for c in found.candidates],
        "chosen": found.chosen.key, "unit": found.unit, "bound": found.bound, "samples": found.samples,
        "widths": dict(found.widths), "qp": found.settings and found.settings.qp, "qp_of": qp, "device": found.device,
        "fits": {name: asdict(fit) for name, fit in found.fits.items()},
    }  # fmt: skip


def _summary(found: Shrunk) -> str:
    chosen = found.chosen
    return (
        f"{len(found.candidates)} candidates; the chosen one is {chosen.precision}, keeps "
        f"{percent(channels_left(found, chosen), 1)} of the channels, and its quality drops by at most "
        f"{chosen.limit:.4f}, {found.bound:g} allowed."
    )  # fmt: skip


def _figures(found: Shrunk) -> tuple[Figure, ...]:
    dense, chosen = found.dense, found.chosen
    figures = [Figure("Quality", *map(number, (dense.value, chosen.value)))]
    unit = f" [{found.unit}]" if found.unit else ""
    if dense.cost and chosen.cost is not None:
        note = f"{percent(chosen.cost / dense.cost, 1)} of the dense network's"
        figures.append(Figure(f"Cost{unit}", number(dense.cost), number(chosen.cost), note))
    figures.append(
        Figure("Multiply-accumulates", number(dense.macs), number(chosen.macs)),
    )
    figures.append(Figure("Channels", "100 %", percent(channels_left(found, chosen), 1)))
    return tuple(figures)


def _front(found: Shrunk, axis: str, name: str) -> Chart | None:
    rows = [
        {axis: getattr(c, name), "quality": c.value, "candidate": state_of(found, c), **_facts(found, c)}
        for c in found.candidates
        if getattr(c, name) is not None and c.value is not None
    ]  # fmt: skip
    if len(rows) < 2:
        return None
    return front(f"Quality against {axis}", rows, axis, "quality", label="candidate")


def _facts(found: Shrunk, c: Candidate) -> dict[str, Any]:
    return {
        "precision": c.precision, "channels kept": round(channels_left(found, c), 3),
        "zeros": c.sparsity, "drop at most": c.limit,
    }  # fmt: skip


def _predicted(found: Shrunk) -> Chart | None:
    """Points on the diagonal were predicted exactly."""
    rows = [
        {"predicted": c.predicted, "measured": c.cost, "precision": c.precision, "candidate": state_of(found, c)}
        for c in found.candidates
        if c.predicted is not None and c.cost is not None
    ]  # fmt: skip
    if len(rows) < 2 or all(row["predicted"] == row["measured"] for row in rows):
        return None
    both = [float(row[name] or 0) for row in rows for name in ("predicted", "measured")]
    ends = [{"predicted": v, "measured": v} for v in (min(both), max(both))]
    unit = f" [{found.unit}]" if found.unit else ""
    encoding = {
        name: {"field": name.split()[0], "type": "quantitative", "title": f"{name}{unit}", "scale": {"zero": False}}
        for name in ("predicted", "measured")
    }  # fmt: skip
    axes = {"x": encoding["predicted"], "y": encoding["measured"]}
    spec = {
        "layer": [
            {"data": {"values": ends}, "mark": {"type": "line", "strokeDash": [4, 4]}, "encoding": axes},
            {
                "data": {"values": rows},
                "mark": {"type": "point", "filled": True, "size": 90, "tooltip": True},
                "encoding": {**axes, "color": {"field": "precision", "type": "nominal"}},
            },
        ]
    }  # fmt: skip
    return Chart("Predicted and measured cost", spec, "The dashed line is equality.")


def _widths(found: Shrunk) -> Chart | None:
    rows = [
        {"dimension": name, "network": network, "channels": width}
        for name, dense in found.widths.items()
        for network, width in (("dense", dense), ("chosen", found.chosen.widths.get(name, dense)))
    ]
    return (
        bars("Widths before and after", rows, "dimension", "channels", by="network")
        if rows
        else None
    )


def _layers(found: Shrunk) -> tuple[Table, ...]:
    """Widths of every dimension, and precisions of every tensor."""
    widths = tuple(
        (name, str(dense), str(found.chosen.widths.get(name, dense)))
        for name, dense in found.widths.items()
    )
    tables = [Table("Widths", ("Dimension", "Dense", "Chosen"), widths)] if widths else []
    if found.settings is not None:
        parameters = found.settings.qp_of
        rows = tuple(
            (name, "float32", f"QP {parameters.get(name, found.settings.qp)}")
            for name, tensor in found.model.named_parameters()
            if tensor.dim() > 1
        )
        note = "QP: quantisation parameter; the step doubles every 4."
        tables.append(Table("Precisions", ("Tensor", "Dense", "Chosen"), rows, note))
    elif found.precision == "int8":
        rows = (("convolutions, products with weights", "float32", "int8, a scale per channel"),)
        tables.append(Table("Precisions", ("Tensor", "Dense", "Chosen"), rows))
    return tuple(tables)

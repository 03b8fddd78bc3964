"""Plots of a journey, of a pruning potential and of a reproduced table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from snello.errors import require
from snello.files import write_file
from snello.lab.methods import METHOD_SPECS, label_of

if TYPE_CHECKING:
    from snello.lab.training import JourneyResult, Reproduction, TrainingResult


def _style(method: str) -> dict[str, str]:
    """Matplotlib keywords of a method: its label and, if it has one, its colour."""
    spec = METHOD_SPECS.get(method)
    colour = {"color": spec.colour} if spec and spec.colour else {}
    return {"label": label_of(method), **colour}


def plot_pruning(result: JourneyResult, path: Path) -> Path:
    """Plot the validation loss above the share of pruned parameters, over epochs."""
    figure, (loss, sparsity) = stacked(2)
    for method, run in result.runs.items():
        epochs = [e.epoch for e in run.epochs]
        (line,) = loss.plot(epochs, [e.val_loss for e in run.epochs], **_style(method))
        if method == "baseline" or run.epochs[-1].pruned:
            style = {"color": line.get_color(), "label": line.get_label()}
            sparsity.plot(epochs, [e.pruned * 100 for e in run.epochs], **style)
    loss.set(ylabel="validation loss", yscale="log", title=_title(result))
    sparsity.set(ylabel="parameters at zero [%]", xlabel="epoch", ylim=(-2, 102))
    return finished(figure, (loss, sparsity), path)


def plot_updates(result: JourneyResult, path: Path) -> Path:
    """Plot the share of neurons updated per epoch above the cost of the backward pass."""
    figure, (share, cost) = stacked(2)
    for method, other in result.runs.items():
        if any(e.paper_dense_flops for e in other.epochs):
            epochs = [e.epoch for e in other.epochs]
            share.plot(epochs, [e.updated * 100 for e in other.epochs], **_style(method))
    run = result.runs.get("neq")
    if run is not None:
        epochs = [e.epoch for e in run.epochs]
        for label, values in _relative_costs(run, result.runs.get("baseline")).items():
            cost.plot(epochs, values, label=label)
    share.set(ylabel="neurons updated [%]", ylim=(-2, 102), title=_title(result))
    cost.axhline(1, color="0.7", linewidth=1)
    cost.set(ylabel="backward pass, NEq / baseline", xlabel="epoch")
    cost.set_ylim(bottom=0)
    return finished(figure, (share, cost), path)


def _relative_costs(run: TrainingResult, baseline: TrainingResult | None) -> dict[str, list[float]]:
    dense = baseline.epochs[0].executed_flops if baseline else run.epochs[0].executed_flops
    timed = all(e.dense_ms for e in run.epochs)  # runs of several processes are not timed
    return {
        "FLOPs, paper's convention": [e.paper_flops / e.paper_dense_flops for e in run.epochs],
        "FLOPs executed": [e.executed_flops / dense for e in run.epochs],
        **({"time measured": [e.sparse_ms / e.dense_ms for e in run.epochs]} if timed else {}),
    }


def _title(result: JourneyResult) -> str:
    return f"{result.recipe.model.label} on {result.recipe.data.name}"


def blank(width: float, height: float) -> Any:
    """A figure without axes, in inches."""
    require("matplotlib", "report", "drawing plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # pyplot would change global state and may open a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def saved(figure: Any, path: Path, dpi: int = 120) -> Path:
    """Write a figure as PNG, atomically."""
    return write_file(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format="png"))


def stacked(rows: int) -> Any:
    """A figure, and its panels one below the other on one horizontal axis."""
    figure = blank(8, 6)
    return figure, figure.subplots(rows, 1, sharex=True)


def finished(figure: Any, axes: Any, path: Path) -> Path:
    """Add grids and legends to the panels, and write the figure."""
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    return saved(figure, path)


def plot_potential(
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    path: Path,
    title: str,
    *,
    xlabel: str = "weights left [%]",
    ylabel: str = "test accuracy [%]",
    yscale: Literal["linear", "log"] = "linear",
) -> Path:
    """Plot the pruning potential: quality against pruning ratio, one line per method.

    The horizontal axis is the *remaining* share, logarithmic and descending, so that pruning ratios
    of 90 %, 99 % and 99.9 % are equally far apart.

    Args:
        curves: method -> pruning ratio in [0, 1) -> values in [0, 1], one per seed; the line is
            their median, the band their range.
        path: PNG file to write.
        title: title of the plot.
        xlabel: label of the horizontal axis.
        ylabel: label of the vertical axis.
        yscale: scale of the vertical axis; "log" separates small errors.
    """
    figure, axis = stacked(1)
    for method, curve in curves.items():
        shares = sorted(share for share in curve if share < 1)
        left = [100 * (1 - share) for share in shares]
        values = [[100 * v for v in curve[share]] for share in shares]
        (line,) = axis.plot(
            left, [statistics.median(v) for v in values], marker="o", markersize=3, label=method
        )
        if any(len(v) > 1 for v in values):
            low, high = [min(v) for v in values], [max(v) for v in values]
            axis.fill_between(left, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axis.set(xscale="log", yscale=yscale, xlabel=xlabel, ylabel=ylabel, title=title)
    axis.invert_xaxis()
    return finished(figure, (axis,), path)


def plot_reproduction(result: Reproduction, path: Path) -> Path:
    """Plot published and measured numbers side by side, one panel per quantity.

    Rows that were not run show the published number only.
    """
    comparable = [q for q in result.table.quantities if not q.device]
    figure, panels = stacked(len(comparable))
    places = range(len(result.rows))
    for panel, quantity in zip(panels, comparable, strict=True):
        paper = [row.row.published[quantity.key] or 0 for row in result.rows]
        here = [row.measured[quantity.key] if row.measured else 0 for row in result.rows]
        panel.bar([x - 0.2 for x in places], paper, width=0.4, color="0.7", label="paper")
        panel.bar([x + 0.2 for x in places], here, width=0.4, color="tab:blue", label="measured")
        panel.set_ylabel(quantity.label, fontsize="small")
        if quantity.key != "performance" and max(paper) > 20 * min(
            (p for p in paper if p), default=1
        ):
            panel.set_yscale("log")  # networks differ by orders of magnitude
    panels[0].set_title(result.table.title + (" (quick variants)" if result.quick else ""))
    panels[-1].set_xticks(
        list(places),
        [row.row.name for row in result.rows],
        rotation=60,
        ha="right",
        fontsize="small",
    )
    figure.set_size_inches(10, 3 * len(comparable) + 2)
    return finished(figure, panels, path)

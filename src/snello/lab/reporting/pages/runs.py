"""The pages of a journey, a training, a pruning, a sweep and a measurement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from snello.lab.methods import label_of
from snello.lab.reporting._journey import (
    finetuning_table,
    metric_note,
    round_trip_table,
    shipping_table,
    training_table,
)
from snello.lab.reporting._tables import Table
from snello.lab.reporting._values import megabytes, percent

from .charts import bars, counted, front, histogram, lines
from .layers import layer_charts
from .page import Chart, Figure, Page

if TYPE_CHECKING:
    from snello.deploy import Profile
    from snello.lab.training import JourneyResult, ShippedRow, TrainedRow, TrainingResult
    from snello.pruning import PotentialPoint
    from snello.search.prune import Pruned

METRICS = {
    "validation loss": "val_loss",
    "validation accuracy": "val_accuracy",
    "parameters at zero": "pruned",
    "neurons updated": "updated",
}
"""Title of a curve -> its column in the records of epochs."""
RowT = TypeVar("RowT", "ShippedRow", "TrainedRow")
SHARES = {"validation accuracy", "parameters at zero", "neurons updated"}


def journey_page(result: JourneyResult, folder: str | Path) -> Page:
    """The page of a round trip.

    Args:
        result: its results.
        folder: its folder, from whose model files the layers are drawn.
    """
    name = f"{result.recipe.model.label} on {result.recipe.data.name}"
    train, validation, test = result.images
    summary = (
        f"{train} training, {validation} validation and {test} test images, {result.recipe.epochs} epochs, seed "
        f"{result.recipe.seed}. Accuracy is that of the last epoch on the test images.{metric_note(result)}"
    )
    tables = [shipping_table(result)] if result.shipped else []
    tables += [training_table(result)] if result.trained else []
    if (tuned := finetuning_table(result)) is not None:
        tables.append(tuned)
    if (both := round_trip_table(result)) is not None:
        tables.append(both)
    files = {
        label_of(r.method, "dense"): Path(folder) / r.method / "simplified.pt"
        for r in result.shipped
    }
    page = Page(
        f"{name}: the round trip", summary, _journey_figures(result),
        (*_shipped_fronts(result), *_curves(result.runs), *_distributions(result.runs)),
        tuple(tables), result,
    )  # fmt: skip
    return with_layers(page, files, (result.recipe.model.name,))


def training_page(title: str, result: TrainingResult) -> Page:
    """The page of one training."""
    last, first = result.epochs[-1], result.epochs[0]
    figures = (
        Figure("Test accuracy, last epoch", "", percent(result.test_accuracy), result.flag),
        Figure("Parameters at zero", "", percent(last.pruned)),
        Figure("Neurons updated", percent(first.updated), percent(last.updated)),
        Figure("Seconds", "", f"{result.seconds:.0f}", f"{result.threads} thread(s), {result.device}"),
    )  # fmt: skip
    summary = f"{label_of(result.method)}, {len(result.epochs)} epochs, {result.precision}."
    charts = (*_curves({result.method: result}), *_distributions({result.method: result}))
    return Page(title, summary, figures, charts, (), result)


def pruning_page(title: str, found: Pruned, table: Table, test: float, dense: float) -> Page:
    """The page of a pruning of channels.

    Args:
        title: heading.
        found: its result.
        table: its steps.
        test: test accuracy of the narrow network.
        dense: test accuracy of the dense network.
    """
    last = found.steps[-1]
    figures = (
        Figure("Test accuracy", percent(dense), percent(test), f"{(test - dense) * 100:+.2f} points"),
        Figure("Multiply-accumulates", "100 %", percent(last.macs)),
        Figure("Parameters", "100 %", percent(last.parameters)),
    )  # fmt: skip
    rows = [
        {"share of the MACs": s.macs, "validation accuracy": s.quality, "step": f"step {s.step}" if s.step else "dense"}
        for s in found.steps
        if s.quality is not None
    ]  # fmt: skip
    chart = front(
        "Accuracy against work", rows, "share of the MACs", "validation accuracy", label="step",
        form="%",
    )  # fmt: skip
    data = {
        "steps": found.steps, "stopped": found.stopped, "test_accuracy": test,
        "dense_test_accuracy": dense,
    }  # fmt: skip
    return Page(title, found.stopped or table.note, figures, (chart,), (table,), data)


def sweep_page(
    title: str, facts: Mapping[str, Any], points: Sequence[PotentialPoint], table: Table, unit: str
) -> Page:
    """The page of a pruning potential.

    Args:
        title: heading.
        facts: conditions, embedded with the points.
        points: accuracy of each importance at each ratio.
        table: the same as a table.
        unit: what is pruned: "weight", "neuron".
    """
    rows = [
        {f"{unit}s pruned": p.ratio, "accuracy": p.value, "importance": p.method} for p in points
    ]
    chart = lines(
        "Accuracy against sparsity", rows, f"{unit}s pruned", "accuracy", by="importance", form=".0%",
        x_form=".0%",
    )  # fmt: skip
    return Page(title, table.note, (), (chart,), (table,), {**facts, "points": points})


def curation_page(
    title: str, scores: Mapping[str, Tensor], table: Table, data: Mapping[str, Any]
) -> Page:
    """The page of the scores of samples: a histogram of each score.

    Args:
        title: heading.
        scores: name -> scores of the samples, shape (N,).
        table: facts about the samples.
        data: all results.
    """
    charts = tuple(histogram(name, values, name) for name, values in scores.items())
    return Page(title, table.note, (), charts, (table,), data)


def measurement_page(
    profiles: Sequence[Profile], tables: Sequence[Table], trust: Collection[str] = ()
) -> Page:
    """The page of a measurement: one bar per network and runtime.

    Args:
        profiles: what was measured.
        tables: the same as tables.
        trust: the user's own factories that the files may name.
    """
    rows = [
        {"network": p.name, "runtime": runtime, "median latency [ms]": time.median_ms}
        for p in profiles
        for runtime, time in p.latencies.items()
    ]
    charts = [bars("Latency", rows, "network", "median latency [ms]", by="runtime")]
    sizes = {p.name: p.footprint for p in profiles if p.footprint is not None}
    counts = {
        "Parameters": {name: size.parameters for name, size in sizes.items()},
        "Multiply-accumulates of a sample": {name: size.macs or 0 for name, size in sizes.items()},
    }
    for title, count in counts.items():
        rows = [{"network": n, "millions": c / 1e6, "kind": title} for n, c in count.items()]
        if any(count.values()):
            charts.append(bars(title, rows, "network", "millions", by="kind"))
    page = Page("Measured in one run", tables[-1].note, (), tuple(charts), tuple(tables), profiles)
    return with_layers(page, {p.name: p.file for p in profiles if p.file is not None}, trust)


def with_layers(page: Page, files: Mapping[str, str | Path], trust: Collection[str] = ()) -> Page:
    """A page with what is in each layer of some model files, if there are any.

    Args:
        page: the page.
        files: name -> file, the dense network first.
        trust: the user's own factories that the files may name.
    """
    charts, tables = layer_charts(files, trust)
    return replace(page, charts=(*page.charts, *charts), tables=(*page.tables, *tables))


def _journey_figures(result: JourneyResult) -> tuple[Figure, ...]:
    found = []
    dense, others = _beside_baseline(result.shipped)
    if dense is not None and others:
        lean = min(others, key=lambda row: row.parameters)
        name = label_of(lean.method)
        found += [
            Figure("Test accuracy", percent(dense.test_accuracy), percent(lean.test_accuracy), lean.flag or name),
            _less("Parameters", dense.parameters, lean.parameters, str, name),
            _less("Bitstream [MB]", dense.bitstream_bytes, lean.bitstream_bytes, megabytes, name),
            _less(
                "ONNX Runtime [ms]", dense.onnxruntime.median_ms, lean.onnxruntime.median_ms,
                lambda ms: f"{ms:.3f}", name,
            ),
        ]  # fmt: skip
    plain, cheaper = _beside_baseline(result.trained)
    if plain is not None and cheaper:
        cheap = min(cheaper, key=lambda row: row.seconds)
        name = label_of(cheap.method)
        found.append(
            _less("Training [s]", plain.seconds, cheap.seconds, lambda s: f"{s:.3g}", name)
        )
    return tuple(found)


def _beside_baseline(rows: Sequence[RowT]) -> tuple[RowT | None, list[RowT]]:
    """The row of the baseline, if there is one, and the other rows."""
    found = next((row for row in rows if row.method == "baseline"), None)
    return found, [row for row in rows if row is not found]


def _distributions(runs: Mapping[str, TrainingResult]) -> list[Chart]:
    """Histograms of the sensitivities and velocities that the runs ended with."""
    return [
        counted(
            f"{label_of(method)}: {name} at the end", found.edges, found.counts, f"log10 of the {name}",
            note=f"{found.zeros} more values are exactly zero." if found.zeros else "",
        )
        for method, run in runs.items()
        for name, found in run.distributions.items()
    ]  # fmt: skip


def _less(label: str, before: float, after: float, form: Any, name: str) -> Figure:
    change = f"{name}: {(after / before - 1) * 100:+.1f} %" if before else name
    return Figure(label, form(before), form(after), change)


def _shipped_fronts(result: JourneyResult) -> list[Chart]:
    axes: dict[str, Callable[[ShippedRow], float]] = {
        "bitstream [MB]": lambda row: row.bitstream_bytes / 1e6,
        "latency in ONNX Runtime [ms]": lambda row: row.onnxruntime.median_ms,
        "MACs [millions]": lambda row: row.macs / 1e6,
    }
    found = []
    for axis, value in axes.items():
        rows = [
            {"method": label_of(r.method, "dense"), axis: value(r), "test accuracy": r.test_accuracy}
            for r in result.shipped
        ]  # fmt: skip
        if rows:
            title = f"Accuracy against {axis.partition(' [')[0]}"
            found.append(front(title, rows, axis, "test accuracy", label="method"))
    return found


def _curves(runs: Mapping[str, TrainingResult]) -> tuple[Chart, ...]:
    """Metrics over epochs; those that never change are left out."""
    found = []
    for title, column in METRICS.items():
        rows = [
            {"epoch": e.epoch, title: getattr(e, column), "method": label_of(method)}
            for method, run in runs.items()
            for e in run.epochs
        ]
        if len({row[title] for row in rows}) > 1:
            form = ".0%" if title in SHARES else ""
            heading = title[0].upper() + title[1:]
            found.append(
                lines(
                    heading, rows, "epoch", title, by="method", log=title not in SHARES, form=form
                )
            )
    return tuple(found)

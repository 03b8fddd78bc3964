"""The tables and the picture of the results of ``channel_pruning.py``.

    python benchmarks/channel_pruning_page.py docs/results/channel_pruning

Reads every ``resnetDEPTH-MACS-EPOCHS-IMAGES.json`` in the folder, and the latencies beside it, prints
one table for each and writes ``accuracy.png``: accuracy against MACs and against latency, mean of
the seeds with the lowest and the highest.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from snello.lab.reporting import Table, markdown

INT8, ONNX, TORCH = "onnxruntime int8", "onnxruntime", "pytorch"


@dataclass(frozen=True)
class Point:
    """One method at one bound, over its seeds.

    Attributes:
        method: name.
        macs, parameters: share of the dense network's.
        cut: accuracy before fine-tuning, of the first seed.
        accuracies: of each seed, after it.
        times: runtime -> latency as a share of the dense network's; empty if not measured.
        bitstream: bytes; None if not measured.
    """

    method: str
    macs: float
    parameters: float
    cut: float
    accuracies: tuple[float, ...]
    times: dict[str, float]
    bitstream: int | None


def points_of(path: Path) -> list[Point]:
    """The methods of a file of rows."""
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in json.loads(path.read_text()):
        by_method[row["method"]].append(row)
    beside = path.with_name(f"{path.stem}-latency.json")
    measured = json.loads(beside.read_text()) if beside.exists() else []
    timed = {row["method"]: row for row in measured}
    return [
        Point(
            method, rows[0]["macs"], rows[0]["parameters"], rows[0]["cut"],
            tuple(row["accuracy"] for row in rows),
            {r: timed[method][r]["to_dense"] for r in (TORCH, ONNX, INT8)} if method in timed else {},
            timed[method]["bitstream"] if method in timed else None,
        )
        for method, rows in by_method.items()
    ]  # fmt: skip


def table(path: Path, points: list[Point]) -> Table:
    """One row per method."""
    points = sorted(points, key=lambda p: -mean(p.accuracies))
    depth, macs, epochs, images = path.stem.removeprefix("resnet").split("-")
    header = (
        "Method", "MACs", "Parameters", "After the cut", "Fine-tuned", "Seeds", "PyTorch",
        "ONNX Runtime", "int8", "Bytes",
    )  # fmt: skip
    rows = []
    for point in points:
        spread = f" ({min(point.accuracies):.2%} to {max(point.accuracies):.2%})"
        times = tuple(f"{point.times[r]:.2f}" if point.times else "" for r in (TORCH, ONNX, INT8))
        count = len(point.accuracies)
        rows.append(
            (
                point.method, f"{point.macs:.3f}", f"{point.parameters:.3f}", f"{point.cut:.2%}",
                f"{mean(point.accuracies):.2%}{spread if count > 1 else ''}", str(count), *times,
                "" if point.bitstream is None else str(point.bitstream),
            )
        )  # fmt: skip
    title = f"ResNet-{depth}, at most {macs} of the MACs, {epochs} epochs of {images} images"
    return Table(title, header, tuple(rows))


def schedule(path: Path) -> str:
    """Network and training of a file of rows, for the legend."""
    depth, _, epochs, images = path.stem.removeprefix("resnet").split("-")
    return f"ResNet-{depth}, {epochs} epochs of {images}"


def picture(groups: dict[Path, list[Point]], path: Path) -> None:
    """Accuracy against MACs and against latency: a colour per method, a marker per schedule."""
    lines: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for own, points in groups.items():
        for point in points:
            lines[point.method, schedule(own)].append(point)
    methods = dict.fromkeys(method for method, _ in lines)
    colours = dict(zip(methods, colormaps["tab20"].colors, strict=False))  # more than ten methods
    markers = dict(zip(dict.fromkeys(s for _, s in lines), "os^vD", strict=False))
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    axes = {
        "MACs, share of the dense network's": lambda p: p.macs,
        "latency in ONNX Runtime, share of the dense network's": lambda p: p.times.get(ONNX),
    }
    for panel, (label, value) in zip(panels, axes.items(), strict=True):
        for (method, how), points in lines.items():
            shown = sorted((p for p in points if value(p) is not None), key=value)
            means = [mean(p.accuracies) * 100 for p in shown]
            low = [m - min(p.accuracies) * 100 for m, p in zip(means, shown, strict=True)]
            high = [max(p.accuracies) * 100 - m for m, p in zip(means, shown, strict=True)]
            panel.errorbar(
                [value(p) for p in shown], means, yerr=[low, high], capsize=3,
                marker=markers[how], color=colours[method],
            )  # fmt: skip
        panel.set_xlabel(label)
        panel.grid(color="0.9")
    panels[0].set_ylabel("test accuracy, last epoch [%]")
    entries = [Line2D([], [], color=c, marker="o", label=m) for m, c in colours.items()]
    entries += [
        Line2D([], [], color="0.4", marker=m, linestyle="", label=how) for how, m in markers.items()
    ]
    figure.legend(handles=entries, frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=150)


def main(folder: Path) -> None:
    """Print the tables and write the picture."""
    drawn = {}
    for path in sorted(folder.glob("resnet*.json"), reverse=True):
        if path.stem.endswith("-latency"):
            continue
        points = points_of(path)
        print(markdown(table(path, points)), end="\n\n")
        if "-0-" not in path.stem:  # without fine-tuning: another question
            drawn[path] = points
    picture(drawn, folder / "accuracy.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

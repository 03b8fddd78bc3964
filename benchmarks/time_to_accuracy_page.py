"""The page, the JSON and the picture of the rows of ``time_to_accuracy.py``.

    python benchmarks/time_to_accuracy_page.py docs/results/time_to_accuracy.md --rows runs/time

With ``--rows`` the rows of the folder become the JSON beside the page first; without it the page is
written again from that JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from snello.files import write_text
from snello.lab.reporting import Table, markdown

KINDS = {
    "plain": "fewer epochs", "epochs": "fewer epochs", "rest": "layers at rest", "settled": "layers at rest",
    "neq": "neurons at rest", "stochastic": "neurons at rest", "freezeout": "published freezing",
    "linear": "published freezing", "infobatch": "fewer samples", "orderdp": "fewer samples",
    "rs2": "fewer samples", "static": "fewer samples", "dual": "fewer samples", "ccs": "fewer samples",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One row over its seeds.

    Attributes:
        name: of the row.
        seconds: mean over the seeds, at the median speed of the core.
        accuracies: seed -> accuracy.
        kept: share of the samples trained on.
    """

    name: str
    seconds: float
    accuracies: dict[int, float]
    kept: float

    @property
    def accuracy(self) -> float:
        return mean(self.accuracies.values())

    @property
    def kind(self) -> str:
        if "info" in self.name and self.name.startswith("rest"):
            return "both"
        return KINDS[self.name.split("-")[0]]


def seconds_of(row: dict[str, Any], speed: float) -> float:
    """Seconds, on a CPU brought to a common speed of the core by the mean of the reference steps."""
    if row.get("device", "cpu") != "cpu":
        return float(sum(row["seconds"]))  # of a GPU that did nothing else
    return sum(row["seconds"]) * speed / mean(row["reference"])


MARKERS = "os^Dv"
"""One for each seed."""


def points_of(rows: list[dict[str, Any]]) -> list[Point]:
    speed = median(value for row in rows for value in row["reference"])
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_name[row["row"]].append(row)
    found = [
        Point(
            name,
            mean(seconds_of(row, speed) for row in same if row["reference"]),
            {row["seed"]: row["accuracy"] for row in same},
            mean(row["kept"] for row in same),
        )
        for name, same in by_name.items()
        if any(row["reference"] for row in same)
    ]
    return sorted(found, key=lambda point: -point.seconds)


def fewer(points: list[Point]) -> list[Point]:
    """The curve to beat, from the shortest training to the plain one."""
    return sorted((p for p in points if p.kind == "fewer epochs"), key=lambda point: point.seconds)


def at_same_time(point: Point, curve: list[Point]) -> dict[int, float] | None:
    """For each seed, accuracy over that of fewer epochs at the same seconds.

    Of one row of them that takes within 3 % as long, which has more seeds in common than two; else
    between two of them.
    """
    near = min(curve, key=lambda p: abs(p.seconds - point.seconds))
    if abs(near.seconds / point.seconds - 1) <= 0.03:
        common = point.accuracies.keys() & near.accuracies.keys()
        return {seed: point.accuracies[seed] - near.accuracies[seed] for seed in sorted(common)}
    for low, high in pairwise(curve):
        if low.seconds <= point.seconds <= high.seconds:
            part = (point.seconds - low.seconds) / (high.seconds - low.seconds)
            return {
                seed: value - (1 - part) * low.accuracies[seed] - part * high.accuracies[seed]
                for seed, value in point.accuracies.items()
                if seed in low.accuracies and seed in high.accuracies
            }
    return None


def spread(curve: list[Point]) -> float:
    """Largest range over the seeds among the rows of fewer epochs."""
    return max(max(p.accuracies.values()) - min(p.accuracies.values()) for p in curve)


def to_plain(point: Point, plain: Point) -> float:
    """Mean difference to the plain training over the common seeds."""
    common = point.accuracies.keys() & plain.accuracies.keys()
    return mean(point.accuracies[seed] - plain.accuracies[seed] for seed in common)


def clock_of(rows: list[dict[str, Any]]) -> str:
    """Name the clock that a table's seconds are of."""
    return "CPU seconds" if rows[0].get("device", "cpu") == "cpu" else "Seconds"


def table(points: list[Point], clock: str) -> Table:
    plain, curve = next(p for p in points if p.name == "plain"), fewer(points)
    rows = []
    for point in points:
        above = at_same_time(point, curve) if point.kind != "fewer epochs" else None
        rows.append(
            (
                f"`{point.name}`", point.kind, f"{point.seconds:.0f}", f"{point.seconds / plain.seconds:.2f}",
                f"{100 * point.kept:.0f} %", f"{100 * point.accuracy:.2f} %",
                " ".join(f"{100 * point.accuracies[seed]:.2f}" for seed in sorted(point.accuracies)),
                f"{100 * to_plain(point, plain):+.2f}",
                "" if not above else f"{100 * mean(above.values()):+.2f}",
            )
        )  # fmt: skip
    header = (
        "Row", "Saves by", clock, "to plain", "Samples", "Accuracy", "Each seed", "to plain, points",
        "to fewer epochs, points",
    )  # fmt: skip
    return Table("", header, tuple(rows), "")


def criteria(points: list[Point], from_scratch: bool) -> list[tuple[str, bool, str]]:
    """Bounds, rows that reach them, and by how much."""
    plain, curve = next(p for p in points if p.name == "plain"), fewer(points)
    whole = [p for p in points if len(p.accuracies) == len(plain.accuracies)]

    def best(names: tuple[str, ...], within: float, share: float) -> tuple[bool, str]:
        fitting = [
            p for p in whole if p.name.startswith(names[0]) and all(n in p.name for n in names[1:])
        ]
        good = [p for p in fitting if to_plain(p, plain) >= -within - 1e-9]
        if not good:
            closest = max(fitting, key=lambda p: to_plain(p, plain), default=None)
            return False, "no row" if closest is None else shown(closest)
        found = min(good, key=lambda p: p.seconds)
        return found.seconds <= share * plain.seconds, shown(found)

    def shown(point: Point) -> str:
        return (
            f"`{point.name}`: {100 - 100 * point.seconds / plain.seconds:.0f} % less time, "
            f"{100 * to_plain(point, plain):+.2f} points"
        )

    ahead = []
    for point in whole:
        above = at_same_time(point, curve) if point.kind != "fewer epochs" else None
        if above and mean(above.values()) > spread(curve):
            ahead.append(point)
    top = max(
        ((mean(a.values()), p) for p in whole if p.kind != "fewer epochs" and (a := at_same_time(p, curve))),
        default=None, key=lambda pair: pair[0],
    )  # fmt: skip
    above_text = "no row lies on the curve's range"
    if top is not None:
        above_text = f"`{top[1].name}`: {100 * top[0]:+.2f} points; the seeds' spread is {100 * spread(curve):.2f}"
    infobatch = (
        "InfoBatch: at least 25 % less time at most 0.2 points below plain",
        *best(("infobatch",), 0.002, 0.75),
    )
    above = (
        "above fewer epochs at the same time by more than the seeds' spread",
        bool(ahead),
        above_text,
    )
    if from_scratch:
        return [
            ("at least 15 % less time at most 0.3 points below plain, by layers at rest",
             *best(("rest",), 0.003, 0.85)),
            infobatch,
            ("layers at rest and InfoBatch: at most 0.68 of the time, at most 0.3 points below plain",
             *best(("rest", "info"), 0.003, 0.68)),
            above,
        ]  # fmt: skip
    return [
        ("at least 35 % less time at most 0.2 points below plain, by layers at rest", *best(("rest",), 0.002, 0.65)),
        ("at least 50 % less time with cached features, likewise", *best(("rest", "stored"), 0.002, 0.5)),
        infobatch,
        ("layers at rest and InfoBatch: half of the time at most 0.3 points below plain",
         *best(("rest", "info"), 0.003, 0.5)),
        above,
    ]  # fmt: skip


def draw(points: list[Point], clock: str, path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curve = fewer(points)
    # Seeds differ by more than rows do: each has its own curve to beat, and its own marker.
    seeds = sorted({seed for point in points for seed in point.accuracies})
    for seed in seeds:
        same = [p for p in curve if seed in p.accuracies]
        axes.plot(
            [p.seconds for p in same], [100 * p.accuracies[seed] for p in same], color="0.5",
            zorder=1, linewidth=1, marker=MARKERS[seed], markersize=5,
            label=f"fewer epochs, compressed schedule, seed {seed}",
        )  # fmt: skip
    colours = {
        "layers at rest": "tab:green", "neurons at rest": "tab:olive", "published freezing": "tab:purple",
        "fewer samples": "tab:blue", "both": "tab:red",
    }  # fmt: skip
    for point in points:
        beats = point.kind != "fewer epochs"
        values = {seed: 100 * value for seed, value in point.accuracies.items()}
        for seed, value in values.items() if beats else ():
            colour = colours.get(point.kind, "0.3")
            axes.plot(point.seconds, value, MARKERS[seed], color=colour, markersize=5)
        # Oblique labels do not cover each other where rows lie side by side.
        y, oblique = (min(values.values()), -25) if beats else (max(values.values()), 25)
        axes.annotate(
            point.name, (point.seconds, y), fontsize=6, xytext=(3, -4 if beats else 4),
            textcoords="offset points", rotation=oblique, rotation_mode="anchor",
            va="top" if beats else "bottom",
        )  # fmt: skip
    for kind, colour in colours.items():
        if any(point.kind == kind for point in points):
            axes.plot([], [], "o", color=colour, label=kind)
    axes.set(xlabel=f"{clock} of the training", ylabel="test accuracy, last epoch [%]")
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    axes.margins(0.12)  # room for the labels
    figure.savefig(path, dpi=130)


def page(rows: list[dict[str, Any]], before: str, after: str) -> str:
    points = points_of(rows)
    plain = next(p for p in points if p.name == "plain")
    lines = [before.strip(), ""]
    if len(plain.accuracies) > 1:  # one seed has no spread to compare with
        lines += ["## What was asked for", "", "| | reached | best row |", "|---|---|---|"]
        for what, reached, by in criteria(points, rows[0].get("from_scratch", False)):
            lines.append(f"| {what} | {'yes' if reached else 'no'} | {by} |")
        lines.append("")
    rows_text = markdown(table(points, clock_of(rows))).removeprefix("### ").strip()
    lines += ["## All rows", "", rows_text, "", after.strip(), ""]
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--rows", type=Path, help="folder of rows to put into the JSON")
    options = parser.parse_args(given)
    store = options.page.with_suffix(".json")
    if options.rows is not None:
        found = [
            json.loads(file.read_text()) for file in sorted(options.rows.glob("*-seed-*.json"))
        ]
        if not any(row["row"] == "plain" and row["reference"] for row in found):
            parser.error(
                f"{options.rows} holds no timed row of the plain training, to which all rows are compared: "
                "run time_to_accuracy.py --rows plain without --shared"
            )
        write_text(store, json.dumps(found, indent=1) + "\n")
    rows = json.loads(store.read_text())
    draw(points_of(rows), clock_of(rows), options.page.with_suffix(".png"))
    texts = Path(__file__).with_name(f"{options.page.stem}_page.md").read_text()
    before, after = texts.split("<!-- tables -->")
    write_text(options.page, page(rows, before, after))


if __name__ == "__main__":
    main()

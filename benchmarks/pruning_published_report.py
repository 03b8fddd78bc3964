"""Tables and plots of finished runs of ``pruning_published.py``, for docs/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from snello.files import write_text
from snello.lab.reporting import Table, markdown, plot_potential

BEGIN, END = "<!-- published protocol: begin -->", "<!-- published protocol: end -->"
SENSITIVITIES = ("lobster", "serene", "serene-full", "serene-released", "output")
CONTROLS = ("decay", "magnitude", "han", "oneshot", "oneshot-han")

Row = dict[str, Any]


def write_page(folder: Path, page: Path, methods: Sequence[str]) -> None:
    """Write the tables between the two marks of a page, the plots and the rows beside it.

    Args:
        folder: that of the runs, with one JSON file each.
        page: Markdown with :data:`BEGIN` and :data:`END`, each on a line.
        methods: order of the rows.
    """
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    kept = page.with_name("pruning_published.json")
    if rows:
        write_text(kept, json.dumps(rows, separators=(",", ":")) + "\n")
    parts = [text for group in groups(rows) for text in section(group, methods, page)]
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} needs a line '{BEGIN}' and, after it, a line '{END}'")
    body = "\n".join(parts) or "Not measured: no run has finished.\n"
    write_text(page, f"{before}{BEGIN}\n\n{body}\n{END}{after}")
    print(f"written: {page}, from {len(rows)} runs")


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that may stand in one table: the same network and settings."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(json.dumps([row["network"], row["protocol"]]), []).append(row)
    return list(found.values())


def section(rows: list[Row], methods: Sequence[str], page: Path) -> list[str]:
    """Tables and plot of one network under one setting."""
    p, name = rows[0]["protocol"], rows[0]["network"]
    title = f"{name}, lambda {p['lmbda']:g}, PWE {p['pwe']} ({p['plateau']}), TWT {p['twt']:g}"
    ordered = [m for m in methods if any(row["method"] == m for row in rows)]
    ratios = [0.0, *p["rungs"]]
    by_method = {m: [row for row in rows if row["method"] == m] for m in ordered}
    plot = page.with_name(f"pruning_published-{name}-{p['lmbda']:g}-{p['plateau']}.png")
    errors = {m: _errors(found, ratios) for m, found in by_method.items()}
    plot_potential(errors, plot, title, ylabel="test error [%]", yscale="log")
    return [
        markdown(_accuracy(title, by_method, ratios, p["longest"])),
        f"![Test error against the weights left]({plot.name})\n",
        *map(markdown, _differences(by_method, p["rungs"])),
        markdown(_costs(by_method, p["rungs"])),
    ]


def _accuracy(title: str, rows: dict[str, list[Row]], ratios: list[float], longest: int) -> Table:
    return Table(
        f"{title}: test accuracy [%], median over seeds (lowest to highest)",
        ("Method", "Seeds", *(f"{ratio:.1%}" for ratio in ratios)),
        tuple(
            (m, str(len(found)), *(_cell(_values(found, r, "test"), _percent) for r in ratios))
            for m, found in rows.items()
        ),
        "Columns: share of the weights at zero, the head included. Fine-tuned at every column until the "
        f"validation loss stops falling, for at most {longest} epochs at each of three rates; thresholds, "
        "stopping and best epoch by validation images. Empty: not reached or not run.",
    )


def _differences(rows: dict[str, list[Row]], ratios: list[float]) -> list[Table]:
    """Each sensitivity less each control, seed by seed, in points of test accuracy; none without both."""
    cells = []
    for method in SENSITIVITIES:
        for control in CONTROLS:
            if method in rows and control in rows:
                pairs = [_pairs(rows[method], rows[control], ratio) for ratio in ratios]
                cells.append((f"{method} - {control}", *(_cell(p, _signed) for p in pairs)))
    table = Table(
        "Difference in points of test accuracy, seed by seed: median (lowest to highest)",
        ("Difference", *(f"{ratio:.1%}" for ratio in ratios)),
        tuple(cells),
        "A method is better by more than the spread where the lowest difference is above zero.",
    )
    return [table] if cells else []


def _costs(rows: dict[str, list[Row]], ratios: list[float]) -> Table:
    cells = []
    for method, found in rows.items():
        shares = [row["shares"]["mean"] for row in found if row["shares"]]
        least = [row["shares"]["min"] for row in found if row["shares"]]
        within = [step["within_twt"] for row in found for step in row["steps"]]
        cells.append(
            (
                method,
                _cell([float(row["epochs"]) for row in found], lambda v: f"{v:.0f}"),
                _cell([float(len(row["steps"])) for row in found], lambda v: f"{v:.0f}"),
                f"{sum(within) / len(within):.0%}" if within else "",
                f"{statistics.mean(shares):.4f} ({min(least):.4f})" if shares else "",
                *(_cell([v / 1000 for v in _values(found, r, "bytes")], _kilo) for r in ratios),
            )
        )
    return Table(
        "Epochs, pruning steps, insensitivity, and bitstream [kB]",
        ("Method", "Epochs", "Steps", "Within TWT", "Insensitivity", *(f"{r:.1%}" for r in ratios)),
        tuple(cells),
        "Epochs and steps up to the last rung, without fine-tuning. Insensitivity: mean over the non-zero "
        "weights at the end of an epoch, averaged over the epochs (lowest epoch); 1 is plain decay.",
    )


def _errors(rows: list[Row], ratios: list[float]) -> dict[float, list[float]]:
    found = {ratio: [1 - value for value in _values(rows, ratio, "test")] for ratio in ratios}
    return {ratio: values for ratio, values in found.items() if values}


def _values(rows: list[Row], ratio: float, key: str) -> list[float]:
    return [point[key] for row in rows for point in row["points"] if point["ratio"] == ratio]


def _pairs(rows: list[Row], others: list[Row], ratio: float) -> list[float]:
    """Differences of the seeds that both have, in points."""
    one, two = (
        {row["seed"]: values[0] for row in group if (values := _values([row], ratio, "test"))}
        for group in (rows, others)
    )
    return [100 * (one[seed] - two[seed]) for seed in sorted(one.keys() & two.keys())]


def _cell(values: list[float], text: Callable[[float], str]) -> str:
    if not values:
        return ""
    middle = text(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle}\n({text(min(values))} to {text(max(values))})"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _kilo(value: float) -> str:
    return f"{value:.2f}"

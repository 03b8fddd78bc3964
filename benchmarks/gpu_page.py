"""The page of the GPU's results: a table for every result file, "Not measured" for a missing one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from resting_steps import cells as resting_cells
from time_to_accuracy_page import points_of
from time_to_accuracy_page import table as rows_table

from snello.files import write_text
from snello.lab.reporting import Table, markdown

MISSING = "Not measured."
FINDINGS = Path(__file__).with_name("gpu_page.md")
"""Findings beside the published numbers, written by hand."""
INTRODUCTION = """# On a GPU

    SNELLO_DATA=DATA python benchmarks/gpu.py --minutes=25 --weights=resnet32.th --out runs/gpu
    python benchmarks/gpu.py --out docs/results/gpu --page docs/results/gpu.md

This page is written by the second command from the JSON files that the first one leaves (`runs/gpu/*.json`,
`runs/gpu/finetuning/*.json` and `runs/gpu/training/neq_training.json`, copied to `docs/results/gpu`). All other pages
of results were measured on CPUs.
"""


def write_page(folder: Path, page: Path) -> None:
    """Write the page of a folder of results.

    Args:
        folder: with the JSON files of ``gpu.py``; it may be missing.
        page: Markdown file.
    """
    write_text(page, text(folder))
    print(f"written: {page}")


def text(folder: Path) -> str:
    """The page as Markdown."""
    found = [INTRODUCTION, _environment(folder)]
    for title, files, table in SECTIONS:
        found += [f"## {title}\n", "\n".join(_section(folder, files, table))]
    rows = [_read(path) for path in sorted(folder.glob("finetuning/*-seed-*.json"))]
    if rows:
        found += ["## Fine-tuning\n", markdown(_finetuning(rows))]
    return "\n".join(found)


def _environment(folder: Path) -> str:
    record = _read(folder / "environment.json")
    if record is None:
        return "**Nothing has been measured on a GPU yet**: none was at hand.\n"
    where = (
        f"{record['date']}, {record['device']}, torch {record['torch']}, CUDA {record['cuda']}, cuDNN "
        f"{record['cudnn']}.\n"
    )
    if record.get("dry"):
        return f"**A dry run at tiny sizes: no numbers to publish.** {where}"
    return f"{where}\n{FINDINGS.read_text()}"


def _section(folder: Path, files: Iterable[str], table: Callable[[Any], Table]) -> list[str]:
    parts = []
    for name in files:
        paths = sorted(folder.glob(name)) if folder.is_dir() else []
        parts += [markdown(table(_read(path))) for path in paths]
    return parts or [f"{MISSING}\n"]


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _equality(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "Largest difference between CPU and GPU",
        ("Check", "Compared", "Difference", "Bound", "Worst"),
        tuple(
            (
                row["name"], str(row["tensors"]), row["error"] or f"{row['difference']:.1e}",
                f"{row['bound']:.0e}", row["worst"],
            )
            for row in rows
        ),
        "Relative to the largest magnitude of each tensor, float64 except where named.",
    )  # fmt: skip


def _backward(record: dict[str, Any]) -> Table:
    rows, where = record["rows"], record["environment"]
    first = rows[0]
    shape = "×".join(map(str, (first["batch"], *first["shape"])))
    return Table(
        f"{first['model']}, {shape}",
        ("Frozen", "Share", "Plain [ms]", "Sparse [ms]", "Time", "Bound", "Executed", "Paper"),
        tuple(
            (
                row["kind"], f"{row['frozen']:.0%}", _times(row, "dense"), _times(row, "sparse"),
                *("" if row[key] is None else f"{row[key]:.2f}" for key in ("time", "bound", "executed", "paper")),
            )
            for row in rows
        ),
        f"Median (p10-p90) of {where['repeats']} backward passes of each, in turns; {where['device']}, "
        f"{where['precision']}, {first['layout']}. Columns as on the page of the CPU's backward pass.",
    )  # fmt: skip


def _times(row: dict[str, Any], key: str) -> str:
    return f"{row[f'{key}_ms']:.2f} ({row[f'{key}_p10']:.2f}-{row[f'{key}_p90']:.2f})"


def _resting(record: dict[str, Any]) -> Table:
    place = "the device's memory" if record["in_memory"] else "files"
    return Table(
        f"Features in {place}",
        ("Model", "Layers at rest", "Plain step [ms]", "At rest", "Features stored", "Of a sample [KiB]"),
        tuple(map(resting_cells, record["rows"])),
        f"Shares of the plain step, medians of {record['turns']} in turns; batches of {record['rows'][0]['batch']}, "
        f"AdamW, {'bf16' if record['bf16'] else 'float32'}, transformers {record['transformers']}.",
    )  # fmt: skip


def _finetuning(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    return replace(
        rows_table(points_of(rows), "Seconds"),
        title=f"ResNet-{first['depth']}, public weights, {first['images']} images of JPEG CIFAR-10",
        note=f"Float32, batches of {first['batch']}. Rows and columns as in "
        "[accuracy against time](time_to_accuracy.md).",
    )


def _overhead(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    return Table(
        f"{first['model']}, batch {first['batch']}",
        ("Method", "Time of a step", "p10-p90"),
        tuple((r["method"], f"{r['ratio']:.3f}x", f"{r['p10']:.3f}-{r['p90']:.3f}") for r in rows),
        f"Over a plain step ({first['plain_ms']:.2f} ms), {first['pairs']} pairs in turns, {first['layout']}.",
    )


def _latency(record: dict[str, Any]) -> Table:
    profiles = record["models"]
    dense = {p["name"].split()[0]: p for p in profiles if p["name"].endswith(" dense")}
    rows = []
    for p in profiles:
        base, own = dense[p["name"].split()[0]], p["latencies"]["pytorch"]
        rows.append(
            (
                p["name"], str(p["footprint"]["parameters"]),
                f"{p['footprint']['macs'] / base['footprint']['macs']:.2f}x",
                f"{own['median_ms']:.3f} ({own['p10_ms']:.3f}-{own['p90_ms']:.3f})",
                f"{own['median_ms'] / base['latencies']['pytorch']['median_ms']:.2f}x",
            )
        )  # fmt: skip
    header = ("Network", "Params", "MACs", "PyTorch [ms]", "to dense")
    return Table("Dense, masked, simplified, coupled", header, tuple(rows), record["note"])


def _simplified(rows: list[dict[str, Any]]) -> Table:
    return Table(
        f"By share of dead neurons, batch {rows[0]['batch']}",
        ("Network", "Time [ms]", "to dense", "MACs"),
        tuple(
            (
                f"{r['model']} {r['net']}", f"{r['ms']:.3f} ({r['p10']:.3f}-{r['p90']:.3f})",
                f"{r['ratio']:.2f}x", f"{r['macs']:.2f}x",
            )
            for r in rows
        ),
    )  # fmt: skip


def _training(runs: dict[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for policy, found in runs.items():
        for run in found:
            epochs = run["epochs"]
            dense, sparse = (sum(e[key] for e in epochs) for key in ("dense_ms", "sparse_ms"))
            rows.append(
                (
                    policy, str(len(epochs)), f"{run['test_accuracy']:.2%}",
                    f"{sum(e['updated'] for e in epochs) / len(epochs):.1%}",
                    f"{sparse / dense:.3f}" if dense else "1",
                    f"{sum(e['seconds'] for e in epochs):.0f}",
                )
            )  # fmt: skip
    header = ("Policy", "Epochs", "Test accuracy", "Updated", "Backward time", "Seconds")
    return Table(
        "ResNet-32 on CIFAR-10, 60 epochs", header, tuple(rows),
        "Last epoch, test images, one seed. Backward time: shortened over full, summed over the epochs.",
    )  # fmt: skip


SECTIONS: tuple[tuple[str, tuple[str, ...], Callable[[Any], Table]], ...] = (
    ("Equality with the CPU", ("equality.json",), _equality),
    ("The backward pass with frozen neurons", ("backward-*.json",), _backward),
    ("Steps with layers at rest", ("resting-*.json",), _resting),
    ("Overhead of the sensitivities", ("sensitivity.json",), _overhead),
    ("Latency", ("latency-*.json",), _latency),
    ("Latency by share of dead neurons", ("simplified-*.json",), _simplified),
    (
        "NEq in a whole training",
        ("neq_training.json", "training/neq_training.json"),
        _training,
    ),
)

"""Reproduction of published tables: every row is a recipe and a method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from snello.errors import SnelloError
from snello.files import sha256_of, write_text
from snello.lab.datasets import Splits
from snello.lab.methods import method_of
from snello.lab.recipes import (
    PublishedRow,
    PublishedTable,
    Recipe,
    load_recipe,
    published_table,
)

from ._coding import content_of
from ._data import load_data
from ._distributed import world
from ._fit import train
from ._folder import read_note
from ._journey import ShippedRow, TrainedRow, ship, training_rows
from ._result import NOTE, RESULT, TrainingResult
from ._run import Progress, Run


@dataclass(frozen=True)
class ReproducedRow:
    """A row of a published table and its measurement.

    Attributes:
        row: the published row.
        measured: key -> number, in the units of the published one; in addition to its quantities
            `accuracy` [%] and, in table 1, `ms pytorch` and `ms onnxruntime`. None if the row
            was not run.
        conditions: conditions of the measurement: device, threads, precision, epochs, images, ...
        why_not: error message that kept the row from being run; empty for none.
    """

    row: PublishedRow
    measured: Mapping[str, float] | None
    conditions: Mapping[str, Any]
    why_not: str = ""


@dataclass(frozen=True)
class Reproduction:
    """A published table and its measurements.

    Attributes:
        table: as it was published.
        quick: True if the recipes' quick variants were run, whose numbers are not comparable with
            the published ones.
        rows: in the published order.
    """

    table: PublishedTable
    quick: bool
    rows: tuple[ReproducedRow, ...]


def reproduce(
    name: str,
    folder: str | Path,
    *,
    row: str | None = None,
    quick: bool = False,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Reproduction:
    """Run the rows of a published table; finished rows are not run again, stopped ones resume.

    Args:
        name: "table1" or "table2".
        folder: output folder, with one folder per recipe and in it one per method.
        row: run this row only (and the NEq run that `stochastic-star` imitates); other rows are
            reported if the folder holds their results. None: all rows; an error of one is reported
            in its row, and the next one is run.
        quick: run the recipes' quick variants.
        overrides: options of the recipes, as on the command line.
        progress: called with lines of text.

    Raises:
        ConfigError: for an unknown table or row.
        SnelloError: if the row requested by `row` cannot be run.
    """
    table, folder = published_table(name), Path(folder)
    wanted = [table.row(row)] if row is not None else list(table.rows)
    recipes = {
        r: load_recipe(r, overrides, quick=quick)
        for r in dict.fromkeys(x.recipe for x in table.rows)
    }
    found: dict[str, ReproducedRow] = {}
    for key, recipe in recipes.items():
        group = _Group(
            name, recipe, folder / key, [r for r in table.rows if r.recipe == key], progress
        )
        failed = group.run([r for r in wanted if r.recipe == key], tolerant=row is None)
        found |= group.results(failed)
    return Reproduction(table, quick, tuple(found[r.name] for r in table.rows))


class _Group:
    """The rows of one network: one recipe, several methods, one folder."""

    def __init__(
        self,
        table: str,
        recipe: Recipe,
        folder: Path,
        rows: list[PublishedRow],
        progress: Progress | None,
    ) -> None:
        self._table, self._recipe, self._folder, self._rows = table, recipe, folder, rows
        self._progress = progress
        self._splits: Splits | None = None

    def run(self, wanted: Iterable[PublishedRow], *, tolerant: bool) -> dict[str, str]:
        """Train the requested rows that are not finished yet.

        Args:
            wanted: rows to train.
            tolerant: collect errors instead of raising the first one.

        Returns:
            Name of a failed row -> error message.
        """
        failed: dict[str, str] = {}
        for row in wanted:
            try:
                selection = method_of(row.method).selection
                if selection is not None and selection.imitates is not None:
                    self._train(selection.imitates)
                self._train(row.method)
            except SnelloError as error:
                if not tolerant:
                    raise
                failed[row.name] = " ".join(str(error).split())
        return failed

    def _train(self, method: str) -> None:
        folder = self._folder / method
        if not (folder / RESULT).is_file():
            self._splits = self._splits or load_data(self._recipe)
        train(
            self._recipe, method, folder, splits=self._splits, resume=True, progress=self._progress
        )

    def results(self, failed: Mapping[str, str]) -> dict[str, ReproducedRow]:
        """All rows, with the measurements of the finished ones; only rank 0 measures."""
        runs = {
            row.name: TrainingResult.read(path)
            for row in self._rows
            if (path := self._folder / row.method / RESULT).is_file()
        }
        measured = self._measured(runs) if runs and world().is_first else {}
        return {
            row.name: ReproducedRow(
                row,
                measured.get(row.name),
                self._conditions(runs[row.name]) if row.name in runs else {},
                failed.get(row.name, ""),
            )
            for row in self._rows
        }

    def _measured(self, runs: Mapping[str, TrainingResult]) -> dict[str, dict[str, float]]:
        """Row name -> numbers, kept in the folder for the same runs, shipped with the same options."""
        note, ships = self._folder / f"{self._table}.json", self._table == "table1"
        results = {n: sha256_of(self._folder / r.method / RESULT) for n, r in runs.items()}
        source = {"results": results, "ship": asdict(self._recipe.ship) if ships else None}
        kept = content_of(note)
        if not isinstance(kept, dict) or kept.get("source") != source:
            self._splits = self._splits or load_data(self._recipe)
            kept = {"source": source, "rows": (self._shipped if ships else self._trained)(runs)}
            write_text(note, json.dumps(kept, indent=1))
        rows: dict[str, dict[str, float]] = kept["rows"]
        return rows

    def _shipped(self, runs: Mapping[str, TrainingResult]) -> dict[str, dict[str, float]]:
        assert self._splits is not None
        if self._progress is not None:
            self._progress(f"{self._folder.name}: simplify, code, export, measure ...")
        names = {run.method: name for name, run in runs.items()}
        rows = ship(self._recipe, self._folder, list(names), self._splits)
        return {names[row.method]: _shipped_numbers(row) for row in rows}

    def _trained(self, runs: Mapping[str, TrainingResult]) -> dict[str, dict[str, float]]:
        assert self._splits is not None
        names = {run.method: name for name, run in runs.items()}
        rows = training_rows(
            list(runs.values()), Run(self._recipe, "neq", self._splits).dense_flops
        )
        return {names[row.method]: _trained_numbers(row) for row in rows}

    def _conditions(self, run: TrainingResult) -> dict[str, Any]:
        # Training settings come from the run's note: they may differ from the present recipe. Only
        # timing uses the present one.
        asked, ship = read_note(self._folder / run.method / NOTE), self._recipe.ship
        data = asked["data"]
        return {
            "device": run.device, "processes": run.processes, "threads": run.threads, "precision": run.precision,
            "epochs": len(run.epochs), "batch": data["batch_size"] * asked["accumulate"],
            "data": data["name"], "images": data["limit"] or "all", "weights": asked["weights"] or "random",
            "seed": asked["seed"], "seconds": round(run.seconds), "torch": torch.__version__,
            "timed": f"batch {ship.batch}, {ship.threads} thread(s), median of {ship.repeats}",
            **({"ACCURACY": run.flag} if run.flag else {}),
        }  # fmt: skip


def _shipped_numbers(row: ShippedRow) -> dict[str, float]:
    return {
        "pruned": row.pruned * 100,
        "lean_mb": row.simplified_bytes / 1e6,
        "stream_mb": row.bitstream_bytes / 1e6,
        "ms pytorch": row.pytorch.median_ms,
        "ms onnxruntime": row.onnxruntime.median_ms,
        "accuracy": row.test_accuracy * 100,
        "decoded accuracy": row.decoded_accuracy * 100,
    }


def _trained_numbers(row: TrainedRow) -> dict[str, float]:
    return {
        "bprop_gflops": row.paper_flops / 1e9,
        "performance": row.test_accuracy * 100,
        "executed_gflops": row.executed_flops / 1e9,
        **({} if row.backward_ratio is None else {"backward_ratio": row.backward_ratio}),
        "accuracy": row.test_accuracy * 100,
    }

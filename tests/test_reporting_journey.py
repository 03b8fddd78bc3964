"""The pages of a journey and of a published table, from results that are made up: what stands in
each cell, and what is drawn.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("jsonargparse", reason="the extra train is not installed")
pytest.importorskip("matplotlib", reason="the extra report is not installed")

from seams.reporting import plots
from snello.deploy import Latency
from snello.lab.reporting import (
    finetuning_table,
    markdown,
    plot_potential,
    round_trip_table,
    shipping_table,
    training_table,
    write_report,
    write_reproduction,
)
from snello.lab.reporting.pages import journey_page
from snello.lab.training import (
    EpochRecord,
    FineTunedRow,
    JourneyResult,
    ReproducedRow,
    Reproduction,
    ShippedRow,
    TrainedRow,
    TrainingResult,
    load_recipe,
    published_table,
)


def _latency(ms: float) -> Latency:
    return Latency("pytorch", ms, 0.9 * ms, 1.1 * ms, 1, 2, 1, 3, "a device")


def _shipped(method: str, scale: float = 1.0) -> ShippedRow:
    return ShippedRow(
        method=method, test_accuracy=0.9 * scale, decoded_accuracy=0.89 * scale, pruned=1 - scale,
        parameters=int(1000 * scale), removed=1 - scale, macs=5000, simplified_bytes=int(4e6 * scale),
        bitstream_bytes=int(3e5 * scale), pytorch=_latency(2 * scale), onnxruntime=_latency(scale),
    )  # fmt: skip


def _trained(method: str, scale: float = 1.0, ratio: float | None = 1.0) -> TrainedRow:
    return TrainedRow(method, 0.9, 1e9 * scale, 2e9 * scale, 3 * scale, ratio, 40 * scale)


def _epoch(number: int, scale: float, *, timed: bool = True) -> EpochRecord:
    return EpochRecord(
        epoch=number, seconds=1, train_loss=1 / number, val_loss=1.1 / number, val_accuracy=0.5, pruned=1 - scale,
        updated=scale, backward_ms=2, executed_flops=2e9 * scale, paper_flops=1e9 * scale, paper_dense_flops=1e9,
        dense_ms=4.0 if timed else 0.0, sparse_ms=4.0 * scale if timed else 0.0,
    )  # fmt: skip


def _run(method: str, scale: float = 1.0, *, timed: bool = True) -> TrainingResult:
    epochs = tuple(_epoch(number, scale if number > 1 else 1.0, timed=timed) for number in (1, 2))
    return TrainingResult(method, "model.pt", 0.9, 0.3, epochs, 40.0, "a device", 2, "32-true")


@pytest.fixture(scope="module")
def result() -> JourneyResult:
    methods = {"baseline": 1.0, "serene": 0.5, "neq": 0.8, "serene+neq": 0.4}
    return JourneyResult(
        recipe=load_recipe("digits"), data_source="here", images=(1000, 100, 200),
        runs={method: _run(method, scale) for method, scale in methods.items()},
        shipped=tuple(_shipped(m, s) for m, s in methods.items() if m != "neq"),
        trained=tuple(_trained(m, s, s) for m, s in methods.items() if m != "serene"),
        batch_size=50,
    )  # fmt: skip


def _cells(table: Any, column: str) -> list[str]:
    place = [name.replace("\n", " ") for name in table.header].index(column)
    return [row[place] for row in table.rows]


def test_shipping_table_has_a_row_per_network(result: JourneyResult) -> None:
    table = shipping_table(result)
    assert [row[0] for row in table.rows] == ["No pruning", "SeReNe", "SeReNe + NEq"]
    assert _cells(table, "Accuracy (decoded)")[0] == "90.00 %\n(89.00 %)"
    assert _cells(table, "Pruning ratio") == ["0.00 %", "50.00 %", "60.00 %"]
    assert _cells(table, "Params left") == ["1000", "500\n-50.00 %", "400\n-60.00 %"]
    assert _cells(table, "Lean [MB]") == ["4.00", "2.00", "1.60"]
    assert _cells(table, "Stream [MB]") == ["0.300", "0.150", "0.120"]
    assert _cells(table, "PyTorch [ms]")[0] == "2.00\n1.80-2.20"
    assert "batch 1, 2 thread(s), a device, 3 repeats" in table.note


def test_tables_without_rows_promise_no_conditions(result: JourneyResult) -> None:
    empty = replace(result, shipped=(), trained=())
    assert shipping_table(empty).rows == training_table(empty).rows == ()
    assert "repeats" not in shipping_table(empty).note
    assert round_trip_table(empty) is None


def test_training_table_gives_changes_against_the_first_row(result: JourneyResult) -> None:
    table = training_table(result)
    assert [row[0] for row in table.rows] == ["Baseline", "NEq", "SeReNe + NEq"]
    assert _cells(table, "Bprop FLOPs (paper)") == [
        "1.00 G", "800.00 M\n-20.0 %", "400.00 M\n-60.0 %",
    ]  # fmt: skip
    assert _cells(table, "Backward time") == ["1.00x", "0.80x", "0.40x"]
    assert _cells(table, "Training [s]") == ["40", "32", "16"]
    assert "Batch 50, 2 thread(s), a device, 32-true" in table.note


def test_figures_compare_with_the_baseline_alone(result: JourneyResult, tmp_path: Path) -> None:
    """Wherever it stands among the methods; without it nothing is called dense."""
    turned = replace(result, shipped=result.shipped[::-1], trained=result.trained[::-1])
    figures = journey_page(result, tmp_path).figures
    assert journey_page(turned, tmp_path).figures == figures
    assert [(f.before, f.after) for f in figures if f.label == "Parameters"] == [("1000", "400")]
    without = replace(result, shipped=result.shipped[1:], trained=result.trained[1:])
    assert journey_page(without, tmp_path).figures == ()


def test_backward_time_that_was_not_taken_is_a_dash(result: JourneyResult) -> None:
    rows = (_trained("baseline", 1.0, None),)
    assert _cells(training_table(replace(result, trained=rows)), "Backward time") == ["-"]


def test_round_trip_table_holds_the_methods_that_went_both_ways(result: JourneyResult) -> None:
    table = round_trip_table(result)
    assert table is not None
    assert [row[0] for row in table.rows] == ["Baseline", "SeReNe + NEq"]
    assert _cells(table, "Params left") == ["1000", "400\n-60.0 %"]
    assert _cells(table, "Training [s]") == ["40", "16\n-60.0 %"]
    assert _cells(table, "ONNX Rt [ms]") == ["1.000", "0.400\n-60.0 %"]


def test_no_combination_no_round_trip(result: JourneyResult) -> None:
    runs = {method: run for method, run in result.runs.items() if "+" not in method}
    assert round_trip_table(replace(result, runs=runs)) is None


def test_finetuning_table_compares_with_the_plain_row(result: JourneyResult) -> None:
    assert finetuning_table(result) is None
    rows = (
        FineTunedRow("plain", 0.9, 2.0, 100.0),
        FineTunedRow("resting", 0.89, 0.5, 25.0, "the disk is full"),
    )
    table = finetuning_table(replace(result, finetuned=rows))
    assert table is not None
    assert _cells(table, "Time") == ["1.00x", "0.25x"]
    assert _cells(table, "Accuracy") == ["90.00 %", "89.00 %"]
    assert "Not cached: the disk is full" in table.note
    assert "A prefix at rest saves time here" in table.note
    slower = (rows[0], replace(rows[1], seconds=2.5))
    trained = tuple(replace(row, backward_ratio=1.2) for row in result.trained)
    table = finetuning_table(replace(result, finetuned=slower, trained=trained))
    assert table is not None
    assert "A prefix at rest saves no time here; skipping single neurons" in table.note
    assert table.note.count("saves no time") == 2


def test_every_row_is_as_long_as_its_header(result: JourneyResult) -> None:
    for table in (shipping_table(result), training_table(result), round_trip_table(result)):
        assert table is not None
        assert all(len(row) == len(table.header) for row in table.rows)


def test_report_holds_its_tables_and_names_its_pictures(
    result: JourneyResult, tmp_path: Path
) -> None:
    page = write_report(result, tmp_path / "new").read_text()
    for table in (shipping_table(result), training_table(result), round_trip_table(result)):
        assert table is not None
        assert markdown(table) in page
    assert "1000 training, 100 validation and 200 test images" in page
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert pictures == ["pruning.png", "updates.png"]
    for name in pictures:
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    read = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [row["method"] for row in read["shipped"]] == ["baseline", "serene", "serene+neq"]
    assert read["runs"]["neq"]["epochs"][1]["updated"] == 0.8


def test_mean_iou_is_not_called_accuracy_without_a_word(result: JourneyResult, tmp_path: Path) -> None:  # fmt: skip
    overlap = replace(result, task="segmentation")
    for table in (shipping_table, training_table):
        assert "IoU" in table(overlap).note
        assert "IoU" not in table(result).note
    assert "IoU" in journey_page(overlap, tmp_path).summary


def test_report_leaves_out_what_was_not_done(result: JourneyResult, tmp_path: Path) -> None:
    page = write_report(replace(result, shipped=(), trained=()), tmp_path).read_text()
    assert "|" not in page
    assert "png" not in page


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are made, to read the numbers in them."""
    made: list[Any] = []
    make = plots.blank

    def spy(width: float, height: float) -> Any:
        made.append(make(width, height))
        return made[-1]

    monkeypatch.setattr(plots, "blank", spy)
    return made


def _lines(axis: Any) -> dict[str, list[float]]:
    return {line.get_label(): [float(y) for y in line.get_ydata()] for line in axis.get_lines()}


def test_pruning_plot_draws_losses_and_sparsities(
    result: JourneyResult, drawn: list[Any], tmp_path: Path
) -> None:
    plots.plot_pruning(result, tmp_path / "a.png")
    losses, sparsity = map(_lines, drawn[0].axes)
    assert set(losses) == {"Baseline", "SeReNe", "NEq", "SeReNe + NEq"}
    assert losses["NEq"] == pytest.approx([1.1, 0.55])
    assert sparsity["SeReNe"] == pytest.approx([0, 50])
    assert sparsity["Baseline"] == [0, 0]


def test_updates_plot_draws_costs_relative_to_the_dense_run(
    result: JourneyResult, drawn: list[Any], tmp_path: Path
) -> None:
    plots.plot_updates(result, tmp_path / "a.png")
    shares, costs = map(_lines, drawn[0].axes)
    assert shares["NEq"] == pytest.approx([100, 80])
    for label in ("FLOPs, paper's convention", "FLOPs executed", "time measured"):
        assert costs[label] == pytest.approx([1, 0.8]), label


def test_updates_plot_draws_no_time_that_was_not_taken(
    result: JourneyResult, drawn: list[Any], tmp_path: Path
) -> None:
    runs = {"neq": _run("neq", 0.5, timed=False)}
    plots.plot_updates(replace(result, runs=runs), tmp_path / "a.png")
    costs = _lines(drawn[0].axes[1])
    assert "time measured" not in costs
    assert costs["FLOPs executed"] == pytest.approx([1, 0.5])


def test_potential_is_the_median_over_seeds_at_the_share_that_is_left(
    drawn: list[Any], tmp_path: Path
) -> None:
    curves = {"a": {0.9: [0.5, 0.7, 0.9], 0.0: [1.0, 1.0, 0.8], 1.0: [0.1]}}
    plot_potential(curves, tmp_path / "a.png", "title")
    (axis,) = drawn[0].axes
    (line,) = axis.get_lines()
    assert line.get_xdata() == pytest.approx([100, 10])
    assert line.get_ydata() == pytest.approx([100, 70])
    assert axis.xaxis_inverted()
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((50, 100))


@pytest.mark.parametrize("quick", [False, True])
def test_reproduction_page_has_a_command_for_every_row(quick: bool, tmp_path: Path) -> None:
    table = published_table("table1")
    measured = {q.key: 1.0 for q in table.quantities} | {"accuracy": 90.0, "ms pytorch": 2.0}
    rows = tuple(
        ReproducedRow(row, measured if number == 0 else None, {"epochs": 3}, "no data here")
        for number, row in enumerate(table.rows)
    )
    page = write_reproduction(Reproduction(table, quick, rows), tmp_path).read_text()
    option = " --quick" if quick else ""
    for row in table.rows:
        assert f"- `snello reproduce table1 --row {row.name}{option}`" in page
    assert page.count("not run: no data here") == len(rows) - 1
    assert ("quick variants" in page) is quick
    assert (tmp_path / "table1.png").stat().st_size > 1000
    assert len(json.loads((tmp_path / "table1.json").read_text())["rows"]) == len(rows)

"""Report of a journey: tables, two plots, and all results as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from snello.files import write_text
from snello.lab.methods import label_of

from ._plots import plot_pruning, plot_updates
from ._tables import Table, markdown
from ._values import as_json, flops, megabytes, milliseconds, percent

if TYPE_CHECKING:  # drawing a table must not need the training extra
    from snello.lab.recipes import Recipe
    from snello.lab.training import JourneyResult


_TUNED = {"plain": "All layers", "resting": "Classifier only, features cached"}


def _coded(recipe: Recipe) -> str:
    ship = recipe.ship
    if ship.qp is not None:
        return f"with QP {ship.qp}"
    return f"the smallest within {100 * ship.max_drop:g} points, without the test images"


def shipping_table(result: JourneyResult) -> Table:
    """Table of the shipped networks: accuracy, pruning ratio, size in MB, latency in ms."""
    latency = result.shipped[0].pytorch if result.shipped else None
    note = (
        "Params left and lean MB: after removal of dead neurons, in float32. Accuracy: last epoch, "
        f"test images. Decoded: network decoded from the NNC bitstream, {_coded(result.recipe)}. "
        "Latency: median (p10-p90) of the simplified network, all networks interleaved in one run"
    )
    if latency is not None:
        note += f"; batch {latency.batch}, {latency.threads} thread(s), {latency.device}, {latency.repeats} repeats"
    return Table(
        title=f"A lean network to ship: {result.recipe.model.label} on {result.recipe.data.name}",
        header=(
            "Pruning", "Accuracy\n(decoded)", "Pruning\nratio", "Params\nleft", "Lean\n[MB]", "Stream\n[MB]",
            "PyTorch\n[ms]", "ONNX Rt\n[ms]",
        ),
        rows=tuple(
            (
                label_of(row.method, "No pruning"),
                f"{percent(row.test_accuracy)}\n({percent(row.decoded_accuracy)}){_mark(row.flag)}",
                percent(row.pruned),
                str(row.parameters) + (f"\n-{percent(row.removed)}" if row.removed > 0 else ""),
                megabytes(row.simplified_bytes),
                megabytes(row.bitstream_bytes),
                milliseconds(row.pytorch),
                milliseconds(row.onnxruntime),
            )
            for row in result.shipped
        ),
        note=f"{note}.{metric_note(result)}",
    )  # fmt: skip


def training_table(result: JourneyResult) -> Table:
    """Table of the training runs: accuracy and cost of the backward pass."""
    rows, dense = result.trained, result.trained[0] if result.trained else None
    run = next(iter(result.runs.values()))
    return Table(
        title=f"Cheaper training: {result.recipe.model.label} on {result.recipe.data.name}",
        header=(
            "Training", "Accuracy", "Bprop FLOPs\n(paper)", "Bprop FLOPs\n(executed)",
            "Backward\ntime", "Backward\n[ms/step]", "Training\n[s]",
        ),
        rows=tuple(
            (
                label_of(row.method),
                f"{percent(row.test_accuracy)}{_mark(row.flag)}",
                _with_change(row.paper_flops, dense.paper_flops if dense else 0),
                _with_change(row.executed_flops, dense.executed_flops if dense else 0),
                _times(row.backward_ratio),
                f"{row.backward_ms:.2f}",
                f"{row.seconds:.0f}",
            )
            for row in rows
        ),
        note=(
            "FLOPs per sample, mean over epochs. Paper: the published convention, which counts one "
            "of the two matrix products of a backward pass; executed: torch's FLOP counter on a "
            "training step. Backward time: sparse over dense backward pass, interleaved on the "
            "same batch, sum over epochs; ms/step and seconds come from separate runs. "
            "Changes are relative to the first row. "
            f"Batch {result.batch_size}, {run.threads} thread(s), {run.device}, {run.precision}."
            + metric_note(result)
        ),
    )  # fmt: skip


def finetuning_table(result: JourneyResult) -> Table | None:
    """Table of the fine-tuning with resting layers; None if there is none."""
    if not result.finetuned:
        return None
    plain = result.finetuned[0]
    notes = [f" Not cached: {row.note}." for row in result.finetuned if row.note]
    return Table(
        title=f"Cheaper fine-tuning: {result.recipe.model.label} on {result.recipe.data.name}",
        header=("Fine-tuning", "Accuracy", "Epoch\n[ms]", "All epochs\n[s]", "Time"),
        rows=tuple(
            (
                _TUNED[row.method],
                percent(row.test_accuracy),
                f"{row.epoch_ms:.1f}",
                f"{row.seconds:.2f}",
                _times(row.seconds / plain.seconds if plain.seconds else None),
            )
            for row in result.finetuned
        ),
        note=(
            "Wall-clock time of the whole loop, with everything included; the epochs of the two are trained in "
            "turns, on the same images without augmentation, from the baseline's weights. "
            + _what_saves(result) + "".join(notes)
        ),
    )  # fmt: skip


def _what_saves(result: JourneyResult) -> str:
    """Where this run saved time, and where it did not."""
    plain, resting = (row.seconds for row in result.finetuned)
    backward = [row.backward_ratio for row in result.trained if row.backward_ratio is not None]
    said = {True: "saves time", False: "saves no time"}
    return (
        f"A prefix at rest {said[resting < plain]} here; skipping single neurons, as in the table "
        f"above, {said[min(backward, default=1.0) < 1]} in the backward pass."
    )


def round_trip_table(result: JourneyResult) -> Table | None:
    """Table of shipping and training together; None if no method both prunes and skips updates."""
    shipped, trained = {r.method: r for r in result.shipped}, {r.method: r for r in result.trained}
    methods = [method for method in result.runs if method in shipped and method in trained]
    if not any("+" in method for method in methods):
        return None
    lean, cheap = shipped[methods[0]], trained[methods[0]]
    return Table(
        title=f"The round trip, both ways: {result.recipe.model.label} on {result.recipe.data.name}",
        header=(
            "Training", "Accuracy\n(decoded)", "Bprop FLOPs\n(executed)", "Backward\ntime", "Training\n[s]",
            "Params\nleft", "Lean\n[MB]", "Stream\n[MB]", "ONNX Rt\n[ms]",
        ),
        rows=tuple(
            (
                label_of(method),
                f"{percent(shipped[method].test_accuracy)}\n"
                f"({percent(shipped[method].decoded_accuracy)}){_mark(shipped[method].flag)}",
                _with_change(trained[method].executed_flops, cheap.executed_flops),
                _times(trained[method].backward_ratio),
                f"{trained[method].seconds:.0f}{_change(trained[method].seconds, cheap.seconds)}",
                f"{shipped[method].parameters}{_change(shipped[method].parameters, lean.parameters)}",
                f"{megabytes(shipped[method].simplified_bytes)}"
                f"{_change(shipped[method].simplified_bytes, lean.simplified_bytes)}",
                f"{megabytes(shipped[method].bitstream_bytes)}"
                f"{_change(shipped[method].bitstream_bytes, lean.bitstream_bytes)}",
                f"{shipped[method].onnxruntime.median_ms:.3f}"
                f"{_change(shipped[method].onnxruntime.median_ms, lean.onnxruntime.median_ms)}",
            )
            for method in methods
        ),
        note=(
            "Changes are relative to the first row. FLOPs of the backward pass, per sample, mean "
            "over epochs, without the additional pass for SeReNe's sensitivities, whose time is "
            "part of the seconds. Backward time: sparse over dense backward pass, interleaved on "
            "the same batch; the seconds come from separate runs."
        ),
    )  # fmt: skip


def metric_note(result: JourneyResult) -> str:
    """Note for segmentation that the accuracies are means of IoU; empty for other tasks."""
    return " Accuracies are means of IoU." if result.task == "segmentation" else ""


def _mark(flag: str) -> str:
    return f"\n! {flag}" if flag else ""


def _change(value: float, base: float) -> str:
    return "" if not base or value == base else f"\n{(value / base - 1) * 100:+.1f} %"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _with_change(count: float, dense: float) -> str:
    if not dense or count == dense:
        return flops(count)
    return flops(count) + _change(count, dense)


def write_report(result: JourneyResult, folder: str | Path) -> Path:
    """Write `report.md`, `report.json` and the two plots.

    Returns:
        The path of `report.md`.

    Raises:
        OutputError: if a file cannot be written.
        MissingExtraError: without matplotlib (extra `report`).
    """
    folder = Path(folder)
    write_text(folder / "report.json", as_json(result))
    plot_pruning(result, folder / "pruning.png")
    plot_updates(result, folder / "updates.png")
    return write_text(folder / "report.md", _page(result))


def _page(result: JourneyResult) -> str:
    recipe = result.recipe
    train, validation, test = result.images
    parts = [
        f"# {recipe.model.label} on {recipe.data.name}: the round trip",
        "",
        f"{train} training, {validation} validation and {test} test images. {recipe.epochs} epochs each, seed "
        f"{recipe.seed}, {recipe.precision}, torch {torch.__version__}. Thresholds were chosen on the "
        "validation images; accuracy is the last epoch's on the test images." + metric_note(result),
        "",
    ]
    if result.shipped:
        parts += [
            markdown(shipping_table(result)),
            "![Loss and sparsity over epochs](pruning.png)",
            "",
        ]
    if result.trained:
        parts += [markdown(training_table(result)), "![Share of neurons updated](updates.png)", ""]
    if (tuned := finetuning_table(result)) is not None:
        parts += [markdown(tuned), ""]
    if (both := round_trip_table(result)) is not None:
        parts += [markdown(both), ""]
    return "\n".join(parts)

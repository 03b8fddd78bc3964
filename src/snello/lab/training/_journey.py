"""The round trip on one recipe: train with all methods, simplify, code, export and measure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from snello.deploy import (
    Latency,
    export,
    file_runner,
    footprint,
    format_of,
    latencies,
    pytorch_runner,
)
from snello.errors import ConfigError
from snello.lab.datasets import Splits, Task
from snello.lab.methods import method_of
from snello.lab.recipes import Recipe
from snello.neurons import count_parameters
from snello.simplification import simplify
from snello.store import Record, load, save

from ._coding import coded, settings_without_search
from ._data import Batches, guessed_among, images_used
from ._distributed import World, world
from ._evaluate import evaluate_on
from ._fit import train, validate
from ._flags import flag_of
from ._folder import claimed
from ._resting import FineTunedRow, compare_finetuning
from ._result import MODEL, RESULT, TrainingResult
from ._run import Progress, Run


@dataclass(frozen=True)
class ShippedRow:
    """One shipped network: a row in the table of the ISO/IEC 15938-17 (NNC) pipeline.

    Attributes:
        method: name of the training method.
        test_accuracy: test accuracy of the simplified network in float32, in [0, 1].
        decoded_accuracy: test accuracy of the network decoded from the bitstream.
        pruned: pruning ratio: share of the original parameters that are exactly zero.
        parameters: number of parameters after simplification.
        removed: share of the original parameters removed by simplification.
        macs: multiply-accumulates per sample after simplification.
        simplified_bytes: size of parameters and buffers in float32 after simplification.
        bitstream_bytes: size of the `.snello` file.
        pytorch, onnxruntime: latencies of the simplified network; the timings of all networks are
            interleaved in one run.
        flag: warning about the accuracy, empty for none; see
            [`TrainingResult`][snello.lab.training.TrainingResult].
    """

    method: str
    test_accuracy: float
    decoded_accuracy: float
    pruned: float
    parameters: int
    removed: float
    macs: int
    simplified_bytes: int
    bitstream_bytes: int
    pytorch: Latency
    onnxruntime: Latency
    flag: str = ""


@dataclass(frozen=True)
class TrainedRow:
    """One training run: a row of the NEq table.

    Attributes:
        method: name of the training method.
        test_accuracy: test accuracy after the last epoch, in [0, 1].
        paper_flops: backward FLOPs per sample in the paper's convention (weight gradients only,
            normalisation layers included), mean over epochs.
        executed_flops: executed FLOPs of the backward pass per sample, mean over epochs.
        backward_ms: median over epochs of the median backward time of a step, in milliseconds.
        backward_ratio: time of the sparse over the dense backward pass, interleaved on the same
            batch with each epoch's masks and summed over the epochs. 1 for a method that skips no
            update; None if not timed (several processes).
        seconds: wall-clock time of the training.
        flag: warning about the accuracy; see
            [`TrainingResult`][snello.lab.training.TrainingResult].
    """

    method: str
    test_accuracy: float
    paper_flops: float
    executed_flops: float
    backward_ms: float
    backward_ratio: float | None
    seconds: float
    flag: str = ""


@dataclass(frozen=True)
class JourneyResult:
    """The measurements of a round trip.

    Attributes:
        recipe: the recipe.
        data_source: origin of the images.
        images: number of training, validation and test images that were used.
        runs: the training runs, by method.
        shipped, trained: the two tables.
        batch_size: images per training step.
        task: of the dataset; for segmentation every accuracy is the mean intersection over union.
        finetuned: the baseline's network, fine-tuned plainly and with resting layers; empty if it
            was not trained, or its images cannot be cached.
    """

    recipe: Recipe
    data_source: str
    images: tuple[int, int, int]
    runs: Mapping[str, TrainingResult]
    shipped: tuple[ShippedRow, ...]
    trained: tuple[TrainedRow, ...]
    batch_size: int
    finetuned: tuple[FineTunedRow, ...] = ()
    task: Task = "classification"


def journey(
    recipe: Recipe, folder: str | Path, *, resume: bool = False, progress: Progress | None = None
) -> JourneyResult:
    """Run the round trip; finished parts are kept in the folder and can be resumed.

    Args:
        recipe: the recipe.
        folder: output folder; each method gets a folder in it, with checkpoint and shipped files.
        resume: continue from the finished parts in the folder.
        progress: called with lines of text.

    Raises:
        ConfigError: if the folder is in use by another process.
        SnelloError: for errors of the data, the model, the training and the shipping.
        Stopped: on SIGTERM or SIGINT during training.
    """
    with claimed(Path(folder), resume=resume):
        return _journey(recipe, Path(folder), resume, progress)


def _journey(
    recipe: Recipe, folder: Path, resume: bool, progress: Progress | None
) -> JourneyResult:
    say = progress or (lambda line: None)
    # An error in the last method, or in the coding, must not surface after hours of training.
    _check_order(recipe, folder)
    settings_without_search(recipe)
    splits = validate(recipe)
    runs: dict[str, TrainingResult] = {
        method: train(
            recipe, method, folder / method, splits=splits, resume=resume, progress=progress
        )
        for method in recipe.methods
    }
    # If one method both prunes and skips updates, both tables list all methods for comparison.
    both = any(is_shipped(m) and is_trained(m) and m != "baseline" for m in runs)
    shipped: tuple[ShippedRow, ...] = ()
    finetuned: tuple[FineTunedRow, ...] = ()
    if world().is_first:
        say("simplify, code, export, measure ...")
        shipped = ship(recipe, folder, [m for m in runs if both or is_shipped(m)], splits)
        if "baseline" in runs and any(map(is_trained, set(runs) - {"baseline"})):
            say("fine-tune with and without resting layers ...")
            finetuned = compare_finetuning(recipe, folder / "baseline", splits)
    return JourneyResult(
        recipe=recipe,
        data_source=splits.source,
        images=images_used(recipe, splits),
        runs=runs,
        shipped=shipped,
        trained=training_rows(
            [run for m, run in runs.items() if both or is_trained(m)],
            Run(recipe, "neq", splits).dense_flops,
        ),
        batch_size=recipe.data.batch_size,
        finetuned=finetuned,
        task=splits.task,
    )


def _check_order(recipe: Recipe, folder: Path) -> None:
    """Check that methods which imitate the run of another one come after it.

    Raises:
        ConfigError: if that run is neither in the folder nor trained before.
    """
    for place, method in enumerate(recipe.methods):
        selection = method_of(method).selection
        wanted = selection.imitates if selection is not None else None
        if wanted is None or wanted in recipe.methods[:place]:
            continue
        if not (folder / wanted / RESULT).is_file():
            raise ConfigError(
                f"methods: {method} imitates a finished run of {wanted}: name {wanted} before it"
            )


def is_shipped(method: str) -> bool:
    """Return True for a method that prunes, and for the baseline."""
    return method == "baseline" or method_of(method).sensitivity is not None


def is_trained(method: str) -> bool:
    """Return True for a method that skips updates, and for the baseline."""
    return method == "baseline" or method_of(method).selection is not None


def ship(
    recipe: Recipe, folder: Path, methods: list[str], splits: Splits
) -> tuple[ShippedRow, ...]:
    """Simplify, code, export and measure finished runs; their timings are interleaved."""
    nets = {method: _simplified(folder / method, recipe) for method in methods}
    times = _time(recipe, folder, nets)
    return tuple(
        _shipped_row(recipe, folder, method, nets[method], times, splits) for method in methods
    )


@dataclass(frozen=True)
class _Net:
    original: nn.Module
    lean: nn.Module
    record: Record


def _simplified(folder: Path, recipe: Recipe) -> _Net:
    # A resumed folder may contain an untrusted file: it may only name the recipe's own model.
    original, record = load(folder / MODEL, trust=recipe.model.name)
    inputs = record.example_inputs()
    lean = simplify(original, inputs)
    save(folder / "simplified.pt", lean, record, trust=recipe.model.name)
    onnx = export(lean, inputs, folder / "simplified.onnx")
    format_of(onnx).add_metadata(onnx, record.image_facts())
    return _Net(original, lean, record)


def _time(recipe: Recipe, folder: Path, nets: Mapping[str, _Net]) -> dict[str, Latency]:
    """Latencies of every network in both runtimes, interleaved."""
    ship = recipe.ship
    runners = {}
    for method, net in nets.items():
        inputs = net.record.example_inputs(ship.batch)
        runners[f"{method} pytorch"] = pytorch_runner(net.lean, inputs)
        onnx = folder / method / "simplified.onnx"
        runners[f"{method} onnxruntime"] = file_runner(onnx, inputs, ship.threads)
    return latencies(
        runners, repeats=ship.repeats, warmup=ship.warmup, threads=ship.threads, batch=ship.batch
    )


def _shipped_row(
    recipe: Recipe, folder: Path, method: str, net: _Net, times: dict[str, Latency], splits: Splits
) -> ShippedRow:
    path = coded(recipe, folder / method, net.lean, net.record, splits)
    decoded, _ = load(path, trust=recipe.model.name)
    batches = Batches(recipe, splits, World()).test
    total, nonzero = count_parameters(net.original)
    size = footprint(net.lean, net.record.example_inputs(1))
    return ShippedRow(
        method=method,
        test_accuracy=evaluate_on(splits, net.lean, batches).accuracy,
        decoded_accuracy=(accuracy := evaluate_on(splits, decoded, batches).accuracy),
        pruned=1 - nonzero / total,
        parameters=size.parameters,
        removed=1 - size.parameters / total,
        macs=size.macs,
        simplified_bytes=size.bytes,
        bitstream_bytes=path.stat().st_size,
        pytorch=times[f"{method} pytorch"],
        onnxruntime=times[f"{method} onnxruntime"],
        flag=TrainingResult.read(folder / method / RESULT).flag
        or flag_of(accuracy, guessed_among(splits), images_used(recipe, splits)[2]),
    )


def training_rows(runs: list[TrainingResult], dense: Callable[[], float]) -> tuple[TrainedRow, ...]:
    """Rows of the NEq table for finished runs.

    Args:
        runs: the finished runs.
        dense: returns the backward FLOPs per sample with no neuron frozen, in the paper's
            convention.
    """
    rows = [_trained_row(run) for run in runs]
    # A run without NEq does not count FLOPs in the paper's convention: nothing of it is frozen.
    return tuple(row if row.paper_flops else replace(row, paper_flops=dense()) for row in rows)


def _trained_row(run: TrainingResult) -> TrainedRow:
    epochs = run.epochs
    return TrainedRow(
        method=run.method,
        test_accuracy=run.test_accuracy,
        paper_flops=statistics.mean(e.paper_flops for e in epochs),
        executed_flops=statistics.mean(e.executed_flops for e in epochs),
        backward_ms=statistics.median(e.backward_ms for e in epochs),
        backward_ratio=_ratio(run),
        seconds=run.seconds,
        flag=run.flag,
    )


def _ratio(run: TrainingResult) -> float | None:
    if method_of(run.method).selection is None:
        return 1.0
    dense_ms = sum(epoch.dense_ms for epoch in run.epochs)
    return sum(epoch.sparse_ms for epoch in run.epochs) / dense_ms if dense_ms else None

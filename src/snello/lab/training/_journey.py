"""The round trip on one recipe: train, prune, simplify, code, export, measure; and NEq."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from snello.codec import CodecSettings
from snello.deploy import Latency, export, file_runner, footprint, latencies, pytorch_runner
from snello.lab.datasets import Part, Splits
from snello.lab.methods import method_of
from snello.lab.recipes import Recipe
from snello.neurons import count_parameters
from snello.simplification import simplify
from snello.store import Record, load, save

from ._data import Batches
from ._distributed import World, world
from ._evaluate import evaluate
from ._fit import train, validate
from ._flags import flag_of
from ._folder import claimed
from ._result import RESULT, TrainingResult
from ._run import Progress, Run


@dataclass(frozen=True)
class ShippedRow:
    """One network, all the way out: a row of the table of the MPEG-7 part 17 pipeline.

    Attributes:
        method: how it was trained.
        test_accuracy: of the simplified network, in float32, on the test part.
        decoded_accuracy: of the network decoded from the bitstream.
        pruned: share of the original parameters that are exactly zero: the pruning ratio.
        parameters: parameters left after simplification.
        removed: share of the original parameters that are physically gone.
        macs: multiply-accumulates per sample after simplification.
        simplified_bytes: float32 parameters and buffers after simplification.
        bitstream_bytes: the ``.snello`` file.
        pytorch, onnxruntime: latencies of the simplified network, all networks timed in turns in
            one run.
        flag: why the accuracy is not to be trusted with a saving; see :class:`TrainingResult`.
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
    """One way of training: a row of the NEq table.

    Attributes:
        method: how it was trained.
        test_accuracy: of the last epoch, on the test part.
        paper_flops: backward FLOPs per sample in the paper's convention (weight gradients only,
            with normalisation layers), mean over epochs.
        executed_flops: FLOPs that a backward pass really executes per sample, mean over epochs.
        backward_ms: median over epochs of the median time of a step's backward pass.
        backward_ratio: shortened over full backward, timed in turns on the same batch with each
            epoch's masks, summed over the epochs. 1 where nothing was skipped; None where it was
            not timed, with several processes.
        seconds: wall-clock time of the training.
        flag: as in :class:`TrainingResult`.
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
    """Everything that a journey measured.

    Attributes:
        recipe: what was done.
        data_source: where the images came from.
        images: number of training, validation and test images that were used.
        runs: the training runs, by method.
        shipped, trained: the two tables.
        batch_size: images per training step.
    """

    recipe: Recipe
    data_source: str
    images: tuple[int, int, int]
    runs: Mapping[str, TrainingResult]
    shipped: tuple[ShippedRow, ...]
    trained: tuple[TrainedRow, ...]
    batch_size: int


def journey(
    recipe: Recipe, folder: str | Path, *, resume: bool = False, progress: Progress | None = None
) -> JourneyResult:
    """Run the round trip; every finished part of it is kept in the folder.

    Args:
        recipe: what to do.
        folder: gets one folder per method, with the files to ship next to its checkpoint.
        resume: go on with what the folder holds.
        progress: called with lines of text.

    Raises:
        ConfigError: if another process has the folder.
        SnelloError: for the errors of the data, the model, the training and the shipping.
        Stopped: for SIGTERM or SIGINT while a network is trained.
    """
    with claimed(Path(folder), resume=resume):
        return _journey(recipe, Path(folder), resume, progress)


def _journey(
    recipe: Recipe, folder: Path, resume: bool, progress: Progress | None
) -> JourneyResult:
    say = progress or (lambda line: None)
    splits = validate(recipe)  # what is wrong is found before the first epoch of anything
    runs: dict[str, TrainingResult] = {
        method: train(
            recipe, method, folder / method, splits=splits, resume=resume, progress=progress
        )
        for method in recipe.methods
    }
    # Where a method goes both ways, all are held against each other both ways.
    both = any(is_shipped(m) and is_trained(m) and m != "baseline" for m in runs)
    shipped: tuple[ShippedRow, ...] = ()
    if world().is_first:
        say("simplify, code, export, measure ...")
        shipped = ship(recipe, folder, [m for m in runs if both or is_shipped(m)], splits)
    return JourneyResult(
        recipe=recipe,
        data_source=splits.source,
        images=_used(recipe, splits),
        runs=runs,
        shipped=shipped,
        trained=training_rows(
            [run for m, run in runs.items() if both or is_trained(m)],
            Run(recipe, "neq", splits).dense_flops,
        ),
        batch_size=recipe.data.batch_size,
    )


def _used(recipe: Recipe, splits: Splits) -> tuple[int, int, int]:
    """Numbers of training, validation and test images within the recipe's limits."""

    def count(part: Part, limit: int | None) -> int:
        return len(part) if limit is None else min(len(part), limit)

    data = recipe.data
    return (
        count(splits.train, data.limit),
        count(splits.validation, data.test_limit),
        count(splits.test, data.test_limit),
    )


def is_shipped(method: str) -> bool:
    """Return True for a method that makes a network lean, and for the baseline."""
    return method == "baseline" or method_of(method).sensitivity is not None


def is_trained(method: str) -> bool:
    """Return True for a method that makes training cheaper, and for the baseline."""
    return method == "baseline" or method_of(method).selection is not None


def ship(
    recipe: Recipe, folder: Path, methods: list[str], splits: Splits
) -> tuple[ShippedRow, ...]:
    """Simplify, code, export and measure the finished runs of some methods, timed in turns."""
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
    # A folder that is resumed may hold a stranger's file: the recipe's model is all that it may
    # name.
    original, record = load(folder / "model.pt", trust=recipe.model.name)
    inputs = record.example_inputs()
    lean = simplify(original, inputs)
    save(folder / "simplified.pt", lean, record, trust=recipe.model.name)
    export(lean, inputs, folder / "simplified.onnx")
    return _Net(original, lean, record)


def _time(recipe: Recipe, folder: Path, nets: Mapping[str, _Net]) -> dict[str, Latency]:
    """Every network in both runtimes, in turns."""
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
    path, trust = folder / method / "model.snello", recipe.model.name
    save(path, net.lean, net.record, settings=CodecSettings(qp=recipe.ship.qp), trust=trust)
    decoded, _ = load(path, trust=trust)
    batches = Batches(recipe, splits, World()).test
    total, nonzero = count_parameters(net.original)
    size = footprint(net.lean, net.record.example_inputs(1))
    return ShippedRow(
        method=method,
        test_accuracy=evaluate(net.lean, batches).accuracy,
        decoded_accuracy=(accuracy := evaluate(decoded, batches).accuracy),
        pruned=1 - nonzero / total,
        parameters=size.parameters,
        removed=1 - size.parameters / total,
        macs=size.macs,
        simplified_bytes=size.bytes,
        bitstream_bytes=path.stat().st_size,
        pytorch=times[f"{method} pytorch"],
        onnxruntime=times[f"{method} onnxruntime"],
        flag=TrainingResult.read(folder / method / RESULT).flag
        or flag_of(accuracy, _classes(splits), _used(recipe, splits)[2]),
    )


def _classes(splits: Splits) -> int | None:
    return len(splits.classes) if splits.task == "classification" else None


def training_rows(runs: list[TrainingResult], dense: Callable[[], float]) -> tuple[TrainedRow, ...]:
    """Rows of finished runs.

    ``dense`` counts a backward pass with nothing frozen, in the paper's convention.
    """
    rows = [_trained_row(run) for run in runs]
    # A run without NEq watches no layers, and so has no count in the paper's convention.
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

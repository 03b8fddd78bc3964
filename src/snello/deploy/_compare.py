"""Several models and files side by side, timed in one run."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from torch import Tensor, nn

from snello.errors import ConfigError

from ._executorch import executorch_inputs, executorch_runner
from ._export import export
from ._footprint import Footprint, footprint
from ._latency import Latency, latencies
from ._measure import file_bytes, onnx_inputs
from ._memory import PeakMemory, peak_memory, peak_memory_onnx
from ._onnx_footprint import onnx_footprint
from ._openvino import openvino_inputs, openvino_runner
from ._program import (
    program_footprint,
    program_inputs,
    program_peak_memory,
    program_runner,
)
from ._quantise import quantise
from ._runners import Runner, Runtime, compiled_runner, onnx_runner, pytorch_runner

MODEL_RUNTIMES: tuple[Runtime, ...] = (
    "pytorch",
    "torch.compile",
    "onnxruntime",
    "onnxruntime int8",
)
"""What a PyTorch model can be timed in; ONNX files are made for it and thrown away."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: a model with its inputs, or a file that some runtime reads.

    Attributes:
        name: how it is called in the result.
        model: a PyTorch model; None for a file of another runtime.
        inputs: of the model, with the batch to time on dimension 0.
        file: where it was read from, or what is run if there is no model.
        bitstream: whether the file is a coded bitstream.
        onnx: the model's export, where there is one already: it is timed in ONNX Runtime.
    """

    name: str
    model: nn.Module | None = field(default=None, repr=False)
    inputs: tuple[Tensor, ...] = field(default=(), repr=False)
    file: Path | None = None
    bitstream: bool = False
    onnx: Path | None = None


@dataclass(frozen=True)
class Profile:
    """One row of a comparison.

    Attributes:
        name: of the subject.
        file: its file, if there is one.
        sha256: of the file's bytes, by which results of other devices are matched.
        file_bytes: size of the file (with the weights that lie beside it, for OpenVINO).
        bitstream_bytes: the same, where the file is a coded bitstream.
        footprint: parameters, operations, bytes; None for files that only their runtime can read.
        peak_memory: of one forward pass; None likewise, or where the system does not tell.
        latencies: runtime -> time.
    """

    name: str
    file: str | None
    sha256: str | None
    file_bytes: int | None
    bitstream_bytes: int | None
    footprint: Footprint | None
    peak_memory: PeakMemory | None
    latencies: dict[str, Latency]


@dataclass(frozen=True)
class _Reader:
    """How files of one kind are run and counted."""

    runtime: Runtime
    inputs: Callable[[Path, int], tuple[Tensor, ...]]
    runner: Callable[[Path, tuple[Tensor, ...], int], Runner]
    footprint: Callable[[Path, tuple[Tensor, ...]], Footprint | None]
    peak: Callable[[Path, tuple[Tensor, ...], int], PeakMemory | None]


READERS = {
    ".onnx": _Reader(
        "onnxruntime",
        onnx_inputs,
        onnx_runner,
        lambda path, _: onnx_footprint(path),
        lambda path, inputs, threads: peak_memory_onnx(path, batch=len(inputs[0]), threads=threads),
    ),
    ".pt2": _Reader(
        "torch.export",
        program_inputs,
        lambda path, inputs, _: program_runner(path, inputs),
        program_footprint,
        lambda path, inputs, _: program_peak_memory(path, inputs),
    ),
    ".xml": _Reader("openvino", openvino_inputs, openvino_runner, lambda *_: None, lambda *_: None),
    ".pte": _Reader(
        "executorch", executorch_inputs, executorch_runner, lambda *_: None, lambda *_: None
    ),
}

MODEL_FILES = tuple(READERS)
"""Endings of the files that can be measured without their PyTorch model."""


def compare(
    subjects: Sequence[Subject],
    *,
    runtimes: Sequence[Runtime] = ("pytorch",),
    batch: int = 1,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> tuple[Profile, ...]:
    """Count and time several models and files; all of them take turns in one run.

    Args:
        subjects: what to measure; names must differ.
        runtimes: what the PyTorch models are timed in: any of :data:`MODEL_RUNTIMES`. For ONNX
            Runtime they are exported (and verified) into a temporary folder; for int8 they are
            quantised with ranges taken from the inputs given here, which says how fast int8 is, not
            how accurate.
        batch: samples per call, for files; models have it from their inputs.
        repeats: timed calls of each.
        warmup: untimed calls before.
        threads: threads of each runtime.

    Returns:
        One row per subject, in their order.

    Raises:
        ConfigError: for equal names, unknown runtimes or kinds of files, or counts out of range.
        ModelError: if a model or a file does not run.
        MissingExtraError: naming the extra that a runtime needs.
    """
    _check(subjects, runtimes, batch)
    with tempfile.TemporaryDirectory() as folder:
        runners = {
            (subject.name, runner.runtime): runner
            for number, subject in enumerate(subjects)
            for runner in _runners(subject, runtimes, batch, threads, Path(folder) / str(number))
        }
        keys = {f"{name} in {runtime}": (name, runtime) for name, runtime in runners}
        calls = {text: runners[key] for text, key in keys.items()}
        times = latencies(calls, repeats=repeats, warmup=warmup, threads=threads)
    by_name: dict[str, dict[str, Latency]] = {subject.name: {} for subject in subjects}
    for text, (name, runtime) in keys.items():
        by_name[name][runtime] = times[text]
    return tuple(
        replace(_counted(subject, batch, threads), latencies=by_name[subject.name])
        for subject in subjects
    )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(subjects: Sequence[Subject], runtimes: Sequence[Runtime], batch: int) -> None:
    if batch < 1:
        raise ConfigError(f"batch={batch}: choose at least 1")
    if not subjects or not runtimes:
        raise ConfigError(
            f"{len(subjects)} models and {len(runtimes)} runtimes: give at least one of each"
        )
    for runtime in runtimes:
        if runtime not in MODEL_RUNTIMES:
            known = (
                "it times files only"
                if runtime in get_args(Runtime)
                else "there is no such runtime"
            )
            raise ConfigError(
                f"runtime {runtime!r}: {known}; choose of: {', '.join(MODEL_RUNTIMES)}"
            )
    names = [subject.name for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two models are called {twice[0]!r}: give them different names")
    for subject in subjects:
        _reader(subject)


def _reader(subject: Subject) -> _Reader | None:
    """How the subject's file is read; None for a model."""
    if subject.model is not None:
        return None
    suffix = subject.file.suffix if subject.file else ""
    if suffix not in READERS:
        raise ConfigError(
            f"{subject.file or subject.name}: nothing here runs files that end in {suffix!r}; "
            f"those that can be run end in {', '.join(READERS)}"
        )
    return READERS[suffix]


def _runners(
    subject: Subject, runtimes: Sequence[Runtime], batch: int, threads: int, folder: Path
) -> list[Runner]:
    reader = _reader(subject)
    if reader is None:
        return _model_runners(subject, runtimes, threads, folder)
    assert subject.file is not None  # or there were no reader
    return [reader.runner(subject.file, reader.inputs(subject.file, batch), threads)]


def _model_runners(
    subject: Subject, runtimes: Sequence[Runtime], threads: int, folder: Path
) -> list[Runner]:
    model, inputs = subject.model, subject.inputs
    assert model is not None
    found: list[Runner] = []
    if "pytorch" in runtimes:
        found.append(pytorch_runner(model, inputs))
    if "torch.compile" in runtimes:
        found.append(compiled_runner(model, inputs, threads))
    if subject.onnx or "onnxruntime" in runtimes or "onnxruntime int8" in runtimes:
        plain = subject.onnx or export(model, inputs, folder / "float32.onnx")
        if subject.onnx or "onnxruntime" in runtimes:
            found.append(onnx_runner(plain, inputs, threads))
        if "onnxruntime int8" in runtimes:
            int8 = quantise(plain, folder / "int8.onnx", [inputs]).path
            found.append(onnx_runner(int8, inputs, threads, runtime="onnxruntime int8"))
    return found


def _counted(subject: Subject, batch: int, threads: int) -> Profile:
    size = _size(subject.file) if subject.file else None
    profile = Profile(
        name=subject.name,
        file=str(subject.file) if subject.file else None,
        sha256=sha256_of(subject.file) if subject.file else None,
        file_bytes=size,
        bitstream_bytes=size if subject.bitstream else None,
        footprint=None,
        peak_memory=None,
        latencies={},
    )
    reader = _reader(subject)
    if reader is None:
        assert subject.model is not None
        on_paper = footprint(subject.model, subject.inputs)
        return replace(
            profile, footprint=on_paper, peak_memory=peak_memory(subject.model, subject.inputs)
        )
    assert subject.file is not None
    inputs = reader.inputs(subject.file, batch)
    counts, peak = (
        reader.footprint(subject.file, inputs),
        reader.peak(subject.file, inputs, threads),
    )
    return replace(profile, footprint=counts, peak_memory=peak)


def _size(path: Path) -> int:
    weights = path.with_suffix(".bin")
    return file_bytes(path) + (
        file_bytes(weights) if path.suffix == ".xml" and weights.is_file() else 0
    )

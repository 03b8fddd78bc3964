"""Comparison of several models and files, timed in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snello.deploy._footprint import Footprint, model_footprint
from snello.deploy._memory import PeakMemory, model_peak_memory
from snello.deploy._runners import Runner, compiled_runner, pytorch_runner
from snello.deploy.formats import FORMATS, Format, Onnx, format_of, quantise
from snello.errors import ConfigError
from snello.files import sha256_of

from .counts import file_bytes
from .latency import Latency, latencies


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its inputs, or an exported file, to be measured.

    Attributes:
        name: name in the result.
        model: a PyTorch model; None for a file of another runtime.
        inputs: inputs with the batch to time on dimension 0; empty for random inputs of a file.
        file: file that the model was read from, or the file to run if `model` is None.
        bitstream: True if the file is a coded bitstream.
        onnx: an existing ONNX export of the model, to be timed in ONNX Runtime.
        facts: facts about the inputs, such as the normalisation, for the metadata of a kit's files.
    """

    name: str
    model: nn.Module | None = field(default=None, repr=False)
    inputs: tuple[Tensor, ...] = field(default=(), repr=False)
    file: Path | None = None
    bitstream: bool = False
    onnx: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Profile:
    """Counts and latencies of a model or a file: one row of a comparison.

    Attributes:
        name: name of the subject.
        file: path of its file; None without one.
        sha256: SHA-256 of the file, used to match results of other devices.
        file_bytes: size of the file (for OpenVINO, including the weights in a second file).
        bitstream_bytes: size of the file if it is a coded bitstream.
        footprint: parameters, operations, bytes; None for files that only their runtime can read.
        peak_memory: peak memory of one forward pass; None if it cannot be measured.
        latencies: runtime -> latency, interleaved with the others in one run.
    """

    name: str
    file: str | None
    sha256: str | None
    file_bytes: int | None
    bitstream_bytes: int | None
    footprint: Footprint | None
    peak_memory: PeakMemory | None
    latencies: dict[str, Latency]


def compare(
    subjects: Sequence[Subject],
    *,
    runtimes: Sequence[str] = ("pytorch",),
    batch: int = 1,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> tuple[Profile, ...]:
    """Count and time several models and files, with interleaved timings in one run.

    Args:
        subjects: models and files to measure; names must differ.
        runtimes: runtimes for the PyTorch models, any of
            [`model_runtimes`][snello.deploy.model_runtimes]. For the runtime of a file format,
            models are exported (and verified) into a temporary folder; for int8 they are calibrated
            on the inputs given here, which is valid for timing, not for accuracy.
        batch: batch size of files; the batch size of models is that of their inputs.
        repeats: number of timed calls of each subject and runtime.
        warmup: number of untimed calls before them.
        threads: number of threads of each runtime.

    Returns:
        One row per subject, in their order.

    Raises:
        ConfigError: for equal names, unknown runtimes or file formats, or counts out of range.
        ModelError: if a model or a file does not run.
        MissingExtraError: naming the extra that a runtime needs.
    """
    _check(subjects, runtimes, batch)
    with tempfile.TemporaryDirectory() as folder:
        runners = {
            subject.name: _runners(subject, runtimes, batch, threads, Path(folder) / str(number))
            for number, subject in enumerate(subjects)
        }
        calls = {f"{name} in {r.runtime}": r for name, found in runners.items() for r in found}
        times = latencies(calls, repeats=repeats, warmup=warmup, threads=threads)
    by_name = {
        name: {r.runtime: times[f"{name} in {r.runtime}"] for r in found}
        for name, found in runners.items()
    }
    return tuple(_profile(subject, batch, threads, by_name[subject.name]) for subject in subjects)


def _check(subjects: Sequence[Subject], runtimes: Sequence[str], batch: int) -> None:
    if batch < 1:
        raise ConfigError(f"batch={batch}: choose at least 1")
    if not subjects or not runtimes:
        raise ConfigError(
            f"{len(subjects)} models and {len(runtimes)} runtimes: pass at least one of each"
        )
    for runtime in runtimes:
        if runtime not in model_runtimes():
            raise ConfigError(
                f"runtime {runtime!r}: there is no such runtime; choose from: "
                f"{', '.join(model_runtimes())}"
            )
    names = [subject.name for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two models are called {twice[0]!r}: give them different names")
    for subject in subjects:
        if subject.model is None:
            format_of(subject.file or subject.name)  # refuse an unknown suffix before any work


def _runners(
    subject: Subject, runtimes: Sequence[str], batch: int, threads: int, folder: Path
) -> list[Runner]:
    if subject.model is None:
        path, inputs = _file_and_inputs(subject, batch)
        return [format_of(path).runner(path, inputs, threads)]
    model, inputs = subject.model, subject.inputs
    wanted = dict.fromkeys(runtimes)
    found = []
    if subject.onnx:
        format = format_of(subject.onnx)
        found.append(format.runner(subject.onnx, inputs, threads))
        wanted.pop(format.runtime, None)
    runners = [_model_runner(name)(model, inputs, threads, folder) for name in wanted]
    return [*runners, *found]


def _model_runner(runtime: str) -> ModelRunner:
    if runtime in MODEL_RUNNERS:
        return MODEL_RUNNERS[runtime]
    format = next(format for format in FORMATS.values() if format.runtime == runtime)

    def made(model: nn.Module, inputs: tuple[Tensor, ...], threads: int, folder: Path) -> Runner:
        return format.runner(_exported(model, inputs, format, folder), inputs, threads)

    return made


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], format: Format, folder: Path) -> Path:
    """Export a model into a folder, unless a previous runtime has exported it."""
    path = folder / f"float32{format.suffix}"
    return path if path.exists() else format.export(model, inputs, path)


def _int8(model: nn.Module, inputs: tuple[Tensor, ...], threads: int, folder: Path) -> Runner:
    onnx = Onnx()
    plain = _exported(model, inputs, onnx, folder)
    int8 = quantise(plain, folder / "int8.onnx", [inputs]).path
    return onnx.runner(int8, inputs, threads, runtime="onnxruntime int8")


ModelRunner = Callable[[nn.Module, tuple[Tensor, ...], int, Path], Runner]

MODEL_RUNNERS: dict[str, ModelRunner] = {
    "pytorch": lambda model, inputs, threads, folder: pytorch_runner(model, inputs),
    "torch.compile": lambda model, inputs, threads, folder: compiled_runner(model, inputs, threads),
    "onnxruntime int8": _int8,
}
"""Runtime -> function that prepares a model, for runtimes that are not a plain file format.

Called with the model, its inputs, the number of threads and a folder for files.
"""


def model_runtimes() -> tuple[str, ...]:
    """Names of the runtimes that a PyTorch model can be timed in."""
    return (*MODEL_RUNNERS, *(format.runtime for format in FORMATS.values()))


def _file_and_inputs(subject: Subject, batch: int) -> tuple[Path, tuple[Tensor, ...]]:
    path = subject.file
    assert path is not None  # checked before
    return path, subject.inputs or format_of(path).inputs_of(path, batch)


def _profile(subject: Subject, batch: int, threads: int, times: dict[str, Latency]) -> Profile:
    size = file_bytes(subject.file) if subject.file else None
    counts, peak = _counted(subject, batch, threads)
    return Profile(
        name=subject.name,
        file=str(subject.file) if subject.file else None,
        sha256=sha256_of(subject.file) if subject.file else None,
        file_bytes=size,
        bitstream_bytes=size if subject.bitstream else None,
        footprint=counts,
        peak_memory=peak,
        latencies=times,
    )


def _counted(
    subject: Subject, batch: int, threads: int
) -> tuple[Footprint | None, PeakMemory | None]:
    if subject.model is not None:
        model, inputs = subject.model, subject.inputs
        return model_footprint(model, inputs), model_peak_memory(model, inputs)
    path, inputs = _file_and_inputs(subject, batch)
    format = format_of(path)
    return format.footprint(path), format.peak_memory(path, inputs, threads)

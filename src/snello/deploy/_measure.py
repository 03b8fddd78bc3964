"""Everything about one model, or one ONNX file, in one call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph import Example, positional
from snello.wrappers import check_module

from ._device_bench import KitError, random_feed
from ._footprint import Footprint, footprint
from ._latency import Latency, latencies
from ._memory import PeakMemory, peak_memory, peak_memory_onnx
from ._onnx_footprint import onnx_footprint
from ._runners import Runner, onnx_runner, onnx_session, pytorch_runner


@dataclass(frozen=True)
class Measurement:
    """A model, or an ONNX file, on paper and on the clock.

    Attributes:
        footprint: parameters, operations, bytes.
        latencies: runtime ("pytorch", "onnxruntime") -> time, taken in turns in one run.
        peak_memory: of one forward pass; None where the system does not tell.
    """

    footprint: Footprint
    latencies: dict[str, Latency]
    peak_memory: PeakMemory | None


def measure(
    model: nn.Module,
    example_inputs: Example,
    *,
    onnx: str | os.PathLike[str] | None = None,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> Measurement:
    """Count and time a model; with an ONNX file, time that too, in turns with PyTorch.

    Args:
        model: any module; it is left as it is.
        example_inputs: positional inputs with the batch to time on dimension 0, on the model's
        device. onnx: the model's export, run on the CPU.
        repeats: timed calls of each runtime.
        warmup: untimed calls before.
        threads: threads of each runtime.

    Raises:
        ModelError: if the model or the file does not run on the inputs.
        ConfigError: for counts out of range.
        MissingExtraError: if ``onnx`` is given, without onnxruntime.
    """
    check_module(model, "measure")
    called, inputs = positional(model, example_inputs)
    runners: dict[str, Runner] = {"pytorch": pytorch_runner(called, inputs)}
    if onnx is not None:
        runners["onnxruntime"] = onnx_runner(onnx, inputs, threads)
    times = latencies(runners, repeats=repeats, warmup=warmup, threads=threads)
    return Measurement(footprint(model, example_inputs), times, peak_memory(model, example_inputs))


def measure_onnx(
    path: str | os.PathLike[str],
    *,
    batch: int = 1,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> Measurement:
    """Count and time an ONNX file by itself, on random inputs of the shapes that the file states.

    Args:
        path: the file.
        batch: samples per call, where dimension 0 is free.
        repeats: timed calls.
        warmup: untimed calls before.
        threads: threads of ONNX Runtime.

    Raises:
        ModelError: if the file cannot be loaded, or leaves a dimension other than the batch open.
        ConfigError: for counts out of range.
        MissingExtraError: without onnx or onnxruntime.
    """
    runner = onnx_runner(path, onnx_inputs(path, batch), threads)
    times = latencies({"onnxruntime": runner}, repeats=repeats, warmup=warmup, threads=threads)
    return Measurement(
        onnx_footprint(path), times, peak_memory_onnx(path, batch=batch, threads=threads)
    )


def onnx_inputs(path: str | os.PathLike[str], batch: int = 1) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that an ONNX file states: standard normal, zeros for integers.

    Raises:
        ModelError: if the file cannot be loaded, or leaves a dimension other than the batch open.
        ConfigError: for a batch below one.
    """
    if batch < 1:
        raise ConfigError(f"batch={batch}: choose at least 1")
    try:
        feed = random_feed(onnx_session(path, threads=1), batch)
    except KitError as error:
        raise ModelError(
            f"{path}: {error}. Build its inputs yourself and use onnx_runner"
        ) from error
    return tuple(torch.from_numpy(value) for value in feed.values())


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a file.

    Raises:
        ModelError: if there is no such file.
    """
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}")
    return Path(path).stat().st_size

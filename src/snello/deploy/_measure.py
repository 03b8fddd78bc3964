"""Everything about one model, or one ONNX file, in one call."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.deploy._footprint import Footprint, footprint
from snello.deploy._latency import Latency, latencies
from snello.deploy._runners import Runner, onnx_runner, onnx_session, pytorch_runner
from snello.errors import ConfigError, ModelError, require
from snello.graph import as_inputs


@dataclass(frozen=True)
class Measurement:
    """A model on paper and on the clock.

    Attributes:
        footprint: parameters, operations, bytes.
        latencies: runtime ("pytorch", "onnxruntime") -> time, taken in turns in one run.
    """

    footprint: Footprint
    latencies: dict[str, Latency]


@dataclass(frozen=True)
class OnnxMeasurement:
    """An ONNX file on paper and on the clock.

    Attributes:
        parameters: values in the file's initialisers, without the int64 and boolean ones (shapes, axes,
            indices). Exporters fold BatchNorm into convolutions, so it may be below the model's own number.
        bytes: size of the file.
        latency: its time in ONNX Runtime.
    """

    parameters: int
    bytes: int
    latency: Latency


def measure(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    *,
    onnx: str | os.PathLike[str] | None = None,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> Measurement:
    """Count and time a model; with an ONNX file, time that too, in turns with PyTorch.

    Args:
        model: any module; it is left as it is.
        example_inputs: positional inputs with the batch to time on dimension 0, on the model's device.
        onnx: the model's export, run on the CPU.
        repeats: timed calls of each runtime.
        warmup: untimed calls before.
        threads: threads of each runtime.

    Raises:
        ModelError: if the model or the file does not run on the inputs.
        ConfigError: for counts out of range.
        MissingExtraError: if ``onnx`` is given, without onnxruntime.
    """
    inputs = as_inputs(example_inputs)
    runners: dict[str, Runner] = {"pytorch": pytorch_runner(model, inputs)}
    if onnx is not None:
        runners["onnxruntime"] = onnx_runner(onnx, inputs, threads)
    times = latencies(runners, repeats=repeats, warmup=warmup, threads=threads)
    return Measurement(footprint(model, inputs), times)


def measure_onnx(
    path: str | os.PathLike[str], *, batch: int = 1, repeats: int = 50, warmup: int = 10, threads: int = 1
) -> OnnxMeasurement:
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
    if batch < 1:
        raise ConfigError(f"batch={batch}: choose at least 1")
    session = onnx_session(path, threads)
    inputs = tuple(_random_input(path, node, batch) for node in session.get_inputs())
    runner = onnx_runner(path, inputs, threads)
    times = latencies({"file": runner}, repeats=repeats, warmup=warmup, threads=threads)
    return OnnxMeasurement(_initialiser_count(path), file_bytes(path), times["file"])


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a file.

    Raises:
        ModelError: if there is no such file.
    """
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}")
    return Path(path).stat().st_size


_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def _random_input(path: str | os.PathLike[str], node: Any, batch: int) -> Tensor:
    shape = list(node.shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = batch
    if node.type not in _DTYPES or not all(isinstance(n, int) for n in shape):
        raise ModelError(
            f"{path}: input {node.name!r} is {node.type} of shape {node.shape}; only the batch may be open. "
            "Build its inputs yourself and use onnx_runner"
        )
    dtype = _DTYPES[node.type]
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)  # zero is an index that every table has
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _initialiser_count(path: str | os.PathLike[str]) -> int:
    onnx = require("onnx", "onnx", "counting the parameters of an ONNX file")
    graph = onnx.load(str(path), load_external_data=False).graph
    skipped = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
    return sum(prod(t.dims) for t in graph.initializer if t.data_type not in skipped)

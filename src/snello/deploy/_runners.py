"""Callables that run a model once, and say how."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError, require
from snello.graph import as_inputs

Runtime = Literal["pytorch", "onnxruntime"]


@dataclass(frozen=True)
class Runner:
    """A model and its inputs, ready to run.

    Attributes:
        runtime: what runs it.
        batch: number of samples per call.
        device: where it runs, as torch names it.
        threads: threads that the runtime was built with; None where the caller's setting holds.
        call: runs it once.
    """

    runtime: Runtime
    batch: int
    device: str
    threads: int | None
    call: Callable[[], object] = field(repr=False)

    def __call__(self) -> object:
        return self.call()


def pytorch_runner(model: nn.Module, inputs: tuple[Tensor, ...] | Tensor) -> Runner:
    """A runner of the model in PyTorch: evaluation mode, no autograd.

    Args:
        model: any module; a copy of it as it is now is run.
        inputs: positional inputs with the batch on dimension 0, on the device of the model.

    Raises:
        ModelError: if the model does not run on the inputs.
    """
    arguments = as_inputs(inputs)
    clone = copy.deepcopy(model).eval()

    def call() -> object:
        with torch.inference_mode():
            return clone(*arguments)

    _try(call, type(model).__name__, [tuple(x.shape) for x in arguments])
    return Runner("pytorch", _batch(arguments), str(arguments[0].device), None, call)


def onnx_runner(
    path: str | os.PathLike[str], inputs: tuple[Tensor, ...] | Tensor, threads: int = 1
) -> Runner:
    """A runner of an ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file.
        inputs: its inputs in order, with the batch on dimension 0.
        threads: number of threads of the runtime.

    Raises:
        ModelError: if the file cannot be loaded or does not run on the inputs.
        ConfigError: if the number of inputs or of threads is wrong.
        MissingExtraError: without onnxruntime.
    """
    arguments = as_inputs(inputs)
    session = onnx_session(path, threads)
    names = [node.name for node in session.get_inputs()]
    if len(names) != len(arguments):
        raise ConfigError(
            f"{path} takes {len(names)} inputs ({', '.join(names)}); {len(arguments)} were given"
        )
    feed = dict(zip(names, (x.detach().cpu().numpy() for x in arguments), strict=True))

    def call() -> object:
        return session.run(None, feed)

    _try(call, str(path), [tuple(x.shape) for x in arguments])
    return Runner("onnxruntime", _batch(arguments), "cpu", threads, call)


def onnx_session(path: str | os.PathLike[str], threads: int) -> Any:
    """A session of ONNX Runtime on the CPU.

    Raises:
        ModelError: if the file is missing or cannot be loaded.
        ConfigError: for a number of threads below one.
        MissingExtraError: without onnxruntime.
    """
    if threads < 1:
        raise ConfigError(f"threads={threads}: choose at least 1")
    if not Path(path).is_file():
        raise ModelError(f"there is no ONNX file {path}")
    runtime = require("onnxruntime", "onnx", "running ONNX files")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own exceptions, without a public root
        raise ModelError(f"ONNX Runtime cannot load {path}: {error}") from error


def _batch(inputs: tuple[Tensor, ...]) -> int:
    return int(inputs[0].shape[0]) if inputs and inputs[0].dim() else 1


def _try(call: Callable[[], object], what: str, shapes: list[tuple[int, ...]]) -> None:
    # Better once now than in the middle of a timing run.
    try:
        call()
    except Exception as error:
        raise ModelError(f"{what} does not run on inputs of shape {shapes}: {error}") from error

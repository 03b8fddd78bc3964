"""A PyTorch model as an ExecuTorch program (``.pte``) whose operators run in XNNPACK."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snello.errors import ConfigError, ModelError, require
from snello.files import check_writable, writing
from snello.graph import as_inputs

from ._program import captured
from ._runners import Runner, random_inputs, runner
from ._verify import (
    checked_inputs,
    compare_outputs,
    first_line,
    flat,
    on_cpu,
    quiet,
    shapes,
)


def export_executorch(
    model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor, path: str | os.PathLike[str]
) -> Path:
    """Export a model to ExecuTorch for phones: evaluation mode, delegated to XNNPACK where it can
    be.

    Memory is planned ahead, so the program takes the batch size of the example and no other: give a
    batch of one for a phone. It is loaded again and compared with the model before it appears.

    Args:
        model: any module that torch.export can capture. It is not touched.
        example_inputs: positional inputs of the shapes that the program shall take.
        path: the file to write, ``.pte`` by custom; missing folders are made.

    Returns:
        The path of the file.

    Raises:
        ConfigError: if there is no input, or one without a batch.
        ModelError: if the model cannot be captured or lowered, or if the program's outputs differ
            by more than 1e-4 of the largest magnitude.
        OutputError: if the file cannot be written, with the path.
        MissingExtraError: without executorch (extra ``executorch``).

    Source: https://docs.pytorch.org/executorch
    """
    path = check_writable(path)
    for module in ("executorch.exir", "executorch.runtime"):
        require(module, "executorch", "export to ExecuTorch")
    inputs, clone = checked_inputs(example_inputs), on_cpu(model)
    data = _lowered(clone, inputs)
    with writing(path) as temporary:
        temporary.write_bytes(data)
        compare_outputs(clone, inputs, _run(temporary), "ExecuTorch")
    return path


def _lowered(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    exir = require("executorch.exir", "executorch", "export to ExecuTorch")
    xnnpack = require(
        "executorch.backends.xnnpack.partition.xnnpack_partitioner",
        "executorch",
        "export to ExecuTorch",
    )
    program = captured(model, inputs, free_batch=False)
    try:
        with quiet():
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[xnnpack.XnnpackPartitioner()]
            )
            return bytes(edge.to_executorch().buffer)
    except Exception as error:  # the passes raise whatever they meet
        raise ModelError(
            f"{type(model).__name__} cannot be lowered to ExecuTorch for inputs of shape {shapes(inputs)}: "
            f"{first_line(error)}"
        ) from error


def executorch_runner(
    path: str | os.PathLike[str], inputs: tuple[Tensor, ...] | Tensor, threads: int = 1
) -> Runner:
    """A runner of an ExecuTorch program on this machine's CPU.

    ExecuTorch has one pool of threads per process: the runner that was made last decides for all.

    Args:
        path: the file.
        inputs: positional inputs of the shapes that the program was exported with.
        threads: number of threads of the runtime.

    Raises:
        ModelError: if the file cannot be loaded or does not run on the inputs.
        MissingExtraError: without executorch.
    """
    arguments, loaded = as_inputs(inputs), _load(Path(path))
    pool = require(
        "executorch.extension.pybindings.portable_lib", "executorch", "running ExecuTorch programs"
    )
    pool._unsafe_reset_threadpool(threads)
    return runner(
        "executorch", arguments, threads, lambda: loaded.method.execute(list(arguments)), str(path)
    )


def executorch_inputs(path: str | os.PathLike[str], batch: int) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that an ExecuTorch program takes.

    Raises:
        ModelError: if the file cannot be loaded.
        ConfigError: for another batch size than the program's own.
        MissingExtraError: without executorch.
    """
    loaded = _load(Path(path))
    meta = loaded.method.metadata
    sizes = [meta.input_tensor_meta(i).sizes() for i in range(meta.num_inputs())]
    if sizes and sizes[0][0] != batch:
        raise ConfigError(
            f"{path} takes a batch of {sizes[0][0]} and no other; batch={batch} was asked for"
        )
    return random_inputs(sizes)


def _run(path: Path) -> Callable[[tuple[Tensor, ...]], Sequence[Tensor]]:
    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        loaded = _load(path)
        # The runtime owns the outputs' memory.
        return [y.clone() for y in flat(loaded.method.execute(list(inputs)))]

    return run


@dataclass(frozen=True)
class _Loaded:
    """A method, and what it reads while it runs: it does not keep these alive itself."""

    method: Any
    program: Any
    data: bytes


def _load(path: Path) -> _Loaded:
    if not path.is_file():
        raise ModelError(f"there is no ExecuTorch program {path}")
    runtime = require("executorch.runtime", "executorch", "running ExecuTorch programs")
    data = path.read_bytes()
    try:
        program = runtime.Runtime.get().load_program(data)
        method = program.load_method("forward")
    except Exception as error:  # RuntimeError with a code
        raise ModelError(f"ExecuTorch cannot load {path}: {first_line(error)}") from error
    if method is None:
        raise ModelError(f"{path} is no ExecuTorch program with a method 'forward'")
    return _Loaded(method, program, data)

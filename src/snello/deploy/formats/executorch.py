"""ExecuTorch: a program for phones in a ``.pte`` file, whose operators run in XNNPACK."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

from torch import nn

from snello.deploy._runners import random_inputs
from snello.deploy._verify import first_line, quiet, shapes
from snello.errors import ConfigError, ModelError

from .format import Bind, Files, Format, Inputs
from .program import captured


@final
@dataclass(frozen=True)
class ExecuTorch(Format):
    """An ExecuTorch program, delegated to XNNPACK where it can be.

    Memory is planned ahead, so the program takes the batch size of the example and no other: give a
    batch of one for a phone.

    Source: https://docs.pytorch.org/executorch
    """

    name: ClassVar[str] = "executorch"
    label: ClassVar[str] = "ExecuTorch"
    suffix: ClassVar[str] = ".pte"
    runtime: ClassVar[str] = "executorch"
    extra: ClassVar[str] = "executorch"
    writes_with: ClassVar[tuple[str, ...]] = ("executorch.exir",)
    runs_with: ClassVar[tuple[str, ...]] = ("executorch.runtime",)
    any_batch: ClassVar[bool] = False

    def write(self, model: nn.Module, inputs: Inputs, files: Files) -> None:
        exir = self.require("executorch.exir", "export")
        xnnpack = self.require(
            "executorch.backends.xnnpack.partition.xnnpack_partitioner", "export"
        )
        program = captured(model, inputs, free_batch=False)
        try:
            with quiet():
                edge = exir.to_edge_transform_and_lower(
                    program, partitioner=[xnnpack.XnnpackPartitioner()]
                )
                data = bytes(edge.to_executorch().buffer)
        except Exception as error:  # the passes raise whatever they meet
            raise ModelError(
                f"{type(model).__name__} cannot be lowered to ExecuTorch for inputs of shape {shapes(inputs)}: "
                f"{first_line(error)}"
            ) from error
        files[0].write_bytes(data)

    def load(self, files: Files, threads: int) -> Bind:
        pool = self.require("executorch.extension.pybindings.portable_lib", "running")
        pool._unsafe_reset_threadpool(threads)
        loaded = self._loaded(files[0])
        return lambda inputs: partial(loaded.execute, list(inputs))

    def inputs_of(self, path: Path, batch: int | None = None) -> Inputs:
        self.check(path)
        meta = self._loaded(path).method.metadata
        sizes = [meta.input_tensor_meta(i).sizes() for i in range(meta.num_inputs())]
        if sizes and batch not in (None, sizes[0][0]):
            raise ConfigError(
                f"{path} takes a batch of {sizes[0][0]} and no other; batch={batch} was asked for"
            )
        return random_inputs(sizes)

    def _loaded(self, path: Path) -> _Loaded:
        runtime = self.require("executorch.runtime", "running")
        data = path.read_bytes()
        try:
            program = runtime.Runtime.get().load_program(data)
            method = program.load_method("forward")
        except Exception as error:  # RuntimeError with a code
            raise ModelError(f"ExecuTorch cannot load {path}: {first_line(error)}") from error
        if method is None:
            raise ModelError(f"{path} is no ExecuTorch program with a method 'forward'")
        return _Loaded(method, program, data)


@dataclass(frozen=True)
class _Loaded:
    """A method with its program and bytes, which it reads while it runs but does not keep alive.

    Its outputs lie in memory of the runtime, and are valid as long as this object and until the
    next call.
    """

    method: Any
    program: Any
    data: bytes

    def execute(self, inputs: list[Any]) -> object:
        return self.method.execute(inputs)

"""ExecuTorch: a program for phones in a `.pte` file, whose operators run in XNNPACK."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

from torch import nn

from snello.deploy._runners import random_inputs
from snello.deploy._verify import first_line, quiet, shapes
from snello.errors import ConfigError, ModelError
from snello.graph import class_name

from .format import Bind, Files, Format, Inputs
from .program import captured


@final
@dataclass(frozen=True)
class ExecuTorch(Format):
    """An ExecuTorch program, delegated to XNNPACK where possible.

    Memory is planned at export, so that the program only accepts the example's batch size: use a
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
        except Exception as error:  # the lowering passes may raise any exception
            raise ModelError(
                f"{class_name(model)} cannot be lowered to ExecuTorch for inputs of shape {shapes(inputs)}: "
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
            raise ConfigError(f"{path} only accepts a batch of {sizes[0][0]}, got batch={batch}")
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
            raise ModelError(f"{path} is not an ExecuTorch program with a method 'forward'")
        return _Loaded(method, program, data)


@dataclass(frozen=True)
class _Loaded:
    """A method with references to its program and bytes, which the runtime does not keep alive.

    Its outputs are in memory of the runtime: they are valid during the lifetime of this object and
    until the next call.
    """

    method: Any
    program: Any
    data: bytes

    def execute(self, inputs: list[Any]) -> object:
        return self.method.execute(inputs)

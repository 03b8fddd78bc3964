"""ONNX: one file, run by ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import nn

from snello.deploy._device_bench import KitError, random_feed, session_of
from snello.deploy._device_bench import peak_memory as process_growth
from snello.deploy._footprint import Footprint
from snello.deploy._memory import PeakMemory
from snello.deploy._verify import batch_of, dynamic_batch, first_line, quiet, shapes
from snello.errors import ConfigError, ModelError, require
from snello.graph import Positional, class_name

from .format import Bind, Files, Format, Inputs
from .onnx_counts import onnx_footprint
from .onnx_metadata import read_metadata, write_metadata


@final
@dataclass(frozen=True)
class Onnx(Format):
    """An ONNX graph in one file.

    Attributes:
        opset: version of the ONNX operator set that is written.

    Source: https://onnx.ai, https://onnxruntime.ai
    """

    name: ClassVar[str] = "onnx"
    label: ClassVar[str] = "ONNX"
    suffix: ClassVar[str] = ".onnx"
    runtime: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"
    writes_with: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
    runs_with: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    opset: int = 20

    def write(self, model: nn.Module, inputs: Inputs, files: Files) -> None:
        try:
            with quiet(), torch.no_grad():
                program = torch.onnx.export(
                    model,
                    inputs,
                    dynamo=True,
                    input_names=model.names if isinstance(model, Positional) else None,
                    opset_version=self.opset,
                    dynamic_shapes=dynamic_batch(model, inputs),
                    external_data=False,
                    verbose=False,
                )
                assert program is not None  # the dynamo exporter returns one or raises
                program.save(str(files[0]), external_data=False)
        except OSError:
            raise
        except Exception as error:  # capture, decomposition and ONNX raise various exceptions
            raise ModelError(
                f"{class_name(model)} cannot be exported to ONNX opset {self.opset} for inputs of shape "
                f"{shapes(inputs)} with a free batch size: {first_line(error)}"
            ) from error

    def load(self, files: Files, threads: int) -> Bind:
        session = _session(files[0], threads)
        names = [node.name for node in session.get_inputs()]

        def bind(inputs: Inputs) -> Any:
            if len(names) != len(inputs):
                raise ConfigError(
                    f"{files[0]} takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}"
                )
            feed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
            return lambda: session.run(None, feed)

        return bind

    def inputs_of(self, path: Path, batch: int | None = None) -> Inputs:
        session = onnx_session(path)
        try:
            feed = random_feed(session, 1 if batch is None else batch)
        except KitError as error:
            raise ModelError(f"{path}: {error}; pass its inputs to file_runner") from error
        return tuple(torch.from_numpy(value) for value in feed.values())

    def footprint(self, path: Path) -> Footprint:
        self.require("onnx", "counting")
        onnx_session(path)  # its error is the clearest for a damaged file
        return onnx_footprint(path)

    def metadata(self, path: Path) -> dict[str, Any]:
        return read_metadata(path)

    def add_metadata(self, path: Path, facts: Mapping[str, Any]) -> bool:
        write_metadata(path, facts)
        return True

    def peak_memory(self, path: Path, inputs: Inputs, threads: int) -> PeakMemory | None:
        self.require("onnxruntime", "running")
        try:
            # In a separate process, because the runtime's memory cannot be separated from torch's.
            growth = process_growth(str(path), threads, batch_of(inputs))
        except KitError as error:
            raise ModelError(str(error)) from error
        return None if growth is None else PeakMemory(growth, "process")


def onnx_session(path: str | os.PathLike[str]) -> Any:
    """Open a file in ONNX Runtime, on one thread of the CPU.

    Raises:
        ModelError: if the file is missing or cannot be loaded.
        MissingExtraError: without onnxruntime.
    """
    Onnx().check(Path(path))
    require("onnxruntime", "onnx", "running ONNX files")
    return _session(path, threads=1)


def _session(path: str | os.PathLike[str], threads: int) -> Any:
    try:
        return session_of(str(path), threads)
    except KitError as error:
        raise ModelError(str(error)) from error

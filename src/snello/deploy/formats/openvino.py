"""OpenVINO: a graph in an `.xml` file and its weights in a `.bin` file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from torch import nn

from snello.deploy._runners import random_inputs
from snello.deploy._verify import first_line
from snello.errors import ModelError
from snello.files import folder_beside

from .format import Bind, Files, Format, Inputs
from .onnx import Onnx

METADATA = ["snello", "facts"]
"""Path of the facts, as JSON, in the `rt_info` of a graph."""


@final
@dataclass(frozen=True)
class OpenVino(Format):
    """OpenVINO's pair of files, converted from ONNX, with float32 weights.

    By default OpenVINO computes in bfloat16 on CPUs that support it. Float32 is requested instead,
    for comparable results across runtimes.

    Source: https://docs.openvino.ai
    """

    name: ClassVar[str] = "openvino"
    label: ClassVar[str] = "OpenVINO"
    suffix: ClassVar[str] = ".xml"
    runtime: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    writes_with: ClassVar[tuple[str, ...]] = ("openvino", "onnx", "onnxscript")
    runs_with: ClassVar[tuple[str, ...]] = ("openvino",)

    def files(self, path: Path) -> Files:
        return (path, path.with_suffix(".bin"))

    def write(self, model: nn.Module, inputs: Inputs, files: Files) -> None:
        openvino = self.require("openvino", "export")
        with folder_beside(files[0]) as folder:
            onnx = folder / "model.onnx"
            Onnx().write(model, inputs, (onnx,))
            made = onnx.with_suffix(".xml")  # OpenVINO refuses the temporary files' suffix
            self._save(openvino.convert_model(onnx), made, files)

    def metadata(self, path: Path) -> dict[str, Any]:
        graph = self._graph(self.files(path))
        if not graph.has_rt_info(METADATA):
            return {}
        try:
            found = json.loads(graph.get_rt_info(METADATA).astype(str))
        except (ValueError, RecursionError):
            return {}  # written by another program
        return found if isinstance(found, dict) else {}

    def add_metadata(self, path: Path, facts: Mapping[str, Any]) -> bool:
        graph = self._graph(self.files(path))
        graph.set_rt_info(json.dumps(self.metadata(path) | dict(facts)), METADATA)
        with folder_beside(path) as folder:
            self._save(graph, folder / "model.xml", self.files(path))
        return True

    def load(self, files: Files, threads: int) -> Bind:
        compiled = self._compiled(files, threads)
        request = compiled.create_infer_request()

        def bind(inputs: Inputs) -> Any:
            feed = [x.numpy() for x in inputs]
            return lambda: tuple(request.infer(feed).values())

        return bind

    def inputs_of(self, path: Path, batch: int | None = None) -> Inputs:
        self.check(path)
        sizes = []
        for node in self._compiled(self.files(path), threads=1).inputs:
            first, *rest = node.get_partial_shape()
            if any(n.is_dynamic for n in rest) or node.get_element_type().to_string() != "f32":
                raise ModelError(
                    f"{path}: an input is {node}; random inputs need float32 and fixed dimensions "
                    "except the batch: pass its inputs to file_runner"
                )
            sizes.append(
                (
                    batch or 1 if first.is_dynamic else first.get_length(),
                    *(n.get_length() for n in rest),
                )
            )
        return random_inputs(sizes)

    def _save(self, graph: Any, made: Path, files: Files) -> None:
        """Write a graph through a temporary `.xml` file: the graph last, after its weights."""
        openvino = self.require("openvino", "export")
        openvino.save_model(graph, made, compress_to_fp16=False)
        for source, target in reversed(list(zip(self.files(made), files, strict=True))):
            source.replace(target)

    def _graph(self, files: Files) -> Any:
        openvino = self.require("openvino", "running")
        try:
            return openvino.Core().read_model(*map(str, files))
        except Exception as error:  # openvino raises RuntimeError and its own exceptions
            raise ModelError(f"OpenVINO cannot load {files[0]}: {first_line(error)}") from error

    def _compiled(self, files: Files, threads: int) -> Any:
        openvino = self.require("openvino", "running")
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        graph = self._graph(files)
        try:
            return openvino.Core().compile_model(graph, "CPU", settings)
        except Exception as error:  # openvino raises RuntimeError and its own exceptions
            raise ModelError(f"OpenVINO cannot load {files[0]}: {first_line(error)}") from error

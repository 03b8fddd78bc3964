"""A PyTorch model as OpenVINO's pair of files (``.xml`` and ``.bin``)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError, OutputError, require
from snello.files import check_writable
from snello.graph import as_inputs

from ._export import export
from ._runners import Runner, random_inputs, runner
from ._verify import checked_inputs, compare_outputs, first_line, on_cpu, one_more


def export_openvino(
    model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor, path: str | os.PathLike[str]
) -> Path:
    """Export a model to OpenVINO by way of ONNX: float32 weights, any batch size, evaluation mode.

    The files are loaded again and compared with the model at two batch sizes before they appear.

    Args:
        model: any module that torch.export can capture. It is not touched.
        example_inputs: positional inputs; dimension 0 of each is the batch.
        path: the ``.xml`` file; the weights lie beside it in a ``.bin`` of the same name.

    Returns:
        The path of the ``.xml`` file.

    Raises:
        ConfigError: for a path that does not end in ``.xml``, or inputs without a batch.
        ModelError: if the model cannot be exported, or if the loaded files' outputs differ by more
            than 1e-4 of the largest magnitude.
        OutputError: if the files cannot be written, with the path.
        MissingExtraError: without openvino (extra ``openvino``), or without the extra ``onnx``.

    Source: https://docs.openvino.ai
    """
    if Path(path).suffix != ".xml":
        raise ConfigError(
            f"an OpenVINO model is named *.xml, with its weights in *.bin beside it; got {path}"
        )
    path = check_writable(path)
    check_writable(path.with_suffix(".bin"))
    openvino = require("openvino", "openvino", "export to OpenVINO")
    inputs, clone = checked_inputs(example_inputs), on_cpu(model)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            inside = Path(folder) / path.name
            onnx = export(clone, inputs, inside.with_suffix(".onnx"))
            openvino.save_model(openvino.convert_model(onnx), inside, compress_to_fp16=False)
            for batch in (inputs, one_more(inputs)):
                compare_outputs(clone, batch, _run(inside), "OpenVINO")
            # The weights first: an .xml is never there without them.
            inside.with_suffix(".bin").replace(path.with_suffix(".bin"))
            inside.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def openvino_runner(
    path: str | os.PathLike[str], inputs: tuple[Tensor, ...] | Tensor, threads: int = 1
) -> Runner:
    """A runner of an OpenVINO model on the CPU, in float32.

    Left to itself, OpenVINO computes in bfloat16 on CPUs that can; beside other runtimes that is no
    fair comparison, so float32 is asked for.

    Args:
        path: the ``.xml`` file.
        inputs: its inputs in order, with the batch on dimension 0.
        threads: number of threads of the runtime.

    Raises:
        ModelError: if the files cannot be loaded or do not run on the inputs.
        MissingExtraError: without openvino.
    """
    arguments, compiled = as_inputs(inputs), _load(Path(path), threads)
    request, feed = compiled.create_infer_request(), [x.detach().cpu().numpy() for x in arguments]
    return runner("openvino", arguments, threads, lambda: request.infer(feed), str(path))


def openvino_inputs(path: str | os.PathLike[str], batch: int = 1) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that an OpenVINO model states.

    Raises:
        ModelError: if the files cannot be loaded, or leave a dimension other than the batch open.
        MissingExtraError: without openvino.
    """
    sizes = []
    for node in _load(Path(path), threads=1).inputs:
        first, *rest = node.get_partial_shape()
        if any(n.is_dynamic for n in rest) or node.get_element_type().to_string() != "f32":
            raise ModelError(
                f"{path}: an input is {node}; only float32 with no open dimension but the batch can be made up. "
                "Build its inputs yourself and use openvino_runner"
            )
        sizes.append(
            (batch if first.is_dynamic else first.get_length(), *(n.get_length() for n in rest))
        )
    return random_inputs(sizes)


def _run(path: Path) -> Callable[[tuple[Tensor, ...]], Sequence[Tensor]]:
    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        found = _load(path, threads=1)([x.numpy() for x in inputs])
        return [torch.from_numpy(found[i].copy()) for i in range(len(found))]

    return run


def _load(path: Path, threads: int) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no OpenVINO model {path}")
    openvino = require("openvino", "openvino", "running OpenVINO models")
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    try:
        return openvino.Core().compile_model(str(path), "CPU", settings)
    except Exception as error:  # openvino raises RuntimeError and its own
        raise ModelError(f"OpenVINO cannot load {path}: {first_line(error)}") from error

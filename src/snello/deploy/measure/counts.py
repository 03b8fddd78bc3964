"""Operations, memory and bytes of a model or of a file of any format: all that needs no clock."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from snello.deploy._footprint import Footprint, model_footprint
from snello.deploy._memory import PeakMemory, model_peak_memory
from snello.deploy.formats import FORMATS, format_of
from snello.errors import ConfigError, ModelError
from snello.graph import Example, Inputs
from snello.wrappers import check_module


def footprint(
    model: nn.Module | str | os.PathLike[str], example_inputs: Example | None = None
) -> Footprint:
    """Count the parameters, operations and bytes of a model, or of an exported file.

    For an ONNX file, `parameters` and `nonzeros` refer to its constants; they may be below the
    model's own, because exporters fold BatchNorm into convolutions.

    Args:
        model: any module, whose mode is restored; or the path of an `.onnx` or `.pt2` file.
        example_inputs: inputs of a module with the batch on dimension 0; only the first sample is
            run, so that counts are per sample. Ignored for a file, which records its shapes.

    Raises:
        ModelError: if the model does not run on the inputs, the file cannot be read, or only its
            runtime can read the format.
        ConfigError: for a module without inputs, or an unknown suffix.
        MissingExtraError: without the packages that read the file.
    """
    if not isinstance(model, str | os.PathLike):
        return model_footprint(model, required_inputs(model, example_inputs, "footprint"))
    format = format_of(model)
    found = format.footprint(Path(model))
    if found is None:  # OpenVINO and ExecuTorch files can only be opened by their runtimes
        raise ModelError(
            f"{model}: only time and size of {format.label} files can be measured; count the model "
            "itself, or its export to .onnx or .pt2"
        )
    return found


def peak_memory(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Example | None = None,
    *,
    threads: int = 1,
) -> PeakMemory | None:
    """Measure the memory of one forward pass of a model, or of an exported file.

    Args:
        model: any module, whose mode is restored; or the path of a file.
        example_inputs: inputs with the batch size of interest; None for one random sample with the
            shapes recorded in a file.
        threads: number of threads of the file's runtime; ignored for a module.

    Returns:
        For a module and a `.pt2` file, the memory of simultaneously live tensors. For ONNX, the
        memory growth of a new process that loads and runs the file (Linux only). None if unknown.

    Raises:
        ModelError: if the model or the file does not run on the inputs.
        ConfigError: for a module without inputs, or an unknown suffix.
        MissingExtraError: without the file's runtime.
    """
    if not isinstance(model, str | os.PathLike):
        return model_peak_memory(model, required_inputs(model, example_inputs, "peak_memory"))
    format, path = format_of(model), Path(model)
    inputs = (
        format.inputs_of(path) if example_inputs is None else Inputs.of(example_inputs).tensors()
    )
    return format.peak_memory(path, inputs, threads)


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a file in bytes, including companion files such as OpenVINO's weights.

    Raises:
        ModelError: if the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    format = FORMATS.get(path.suffix)
    return path.stat().st_size if format is None else format.size(path)


def required_inputs(model: object, example_inputs: Example | None, verb: str) -> Example:
    """Return the example inputs, or refuse: a module, unlike a file, does not record its own.

    Raises:
        ConfigError: if there are none, or `model` is not a module.
    """
    check_module(model, verb)
    if example_inputs is None:
        raise ConfigError(
            f"{verb}: a {type(model).__name__} needs example_inputs; only files record theirs"
        )
    return example_inputs

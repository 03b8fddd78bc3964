"""Footprint, memory and size of a model or of a file of any format."""

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

    Of an ONNX file, ``parameters`` and ``nonzeros`` are those of its constants: exporters fold
    BatchNorm into convolutions, so they may be below the model's own.

    Args:
        model: any module, whose mode is restored; or the path of an ``.onnx`` or ``.pt2`` file.
        example_inputs: inputs of a module with the batch on dimension 0; one sample of it is run.

    Raises:
        ModelError: if the model does not run on the inputs, if the file cannot be read, or if only
            its runtime can look into it.
        ConfigError: for a module without inputs, or an unknown suffix.
        MissingExtraError: without the packages that read the file.
    """
    if not isinstance(model, str | os.PathLike):
        return model_footprint(model, needed(model, example_inputs, "footprint"))
    format = format_of(model)
    if (found := format.footprint(Path(model))) is None:
        raise ModelError(
            f"{model}: {format.label} files can be timed and weighed, not looked into; count the model, or its "
            "export to .onnx or .pt2"
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
        example_inputs: inputs of the batch size of interest; None for one sample of the shapes that
            a file states.
        threads: threads of the file's runtime.

    Returns:
        For a module and a ``.pt2`` file, the tensors that live at the same time. For ONNX, the
        growth of a new process that loads and runs the file, on Linux. None where it is unknown.

    Raises:
        ModelError: if the model or the file does not run on the inputs.
        ConfigError: for a module without inputs, or an unknown suffix.
        MissingExtraError: without the file's runtime.
    """
    if not isinstance(model, str | os.PathLike):
        return model_peak_memory(model, needed(model, example_inputs, "peak_memory"))
    format, path = format_of(model), Path(model)
    inputs = (
        format.inputs_of(path) if example_inputs is None else Inputs.of(example_inputs).tensors()
    )
    return format.peak_memory(path, inputs, threads)


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a file, with those that belong to it, such as OpenVINO's weights.

    Raises:
        ModelError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    format = FORMATS.get(path.suffix)
    return path.stat().st_size if format is None else format.size(path)


def needed(model: object, example_inputs: Example | None, verb: str) -> Example:
    """Example inputs of a module, which cannot do without.

    Raises:
        ConfigError: if there are none, or for anything but a module.
    """
    check_module(model, verb)
    if example_inputs is None:
        raise ConfigError(
            f"{verb}: a {type(model).__name__} needs example_inputs; only files state theirs"
        )
    return example_inputs

"""Registry of formats, and export and loading by the suffix of a file."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from snello.deploy._runners import Runner
from snello.errors import ConfigError
from snello.files import check_no_folder
from snello.graph import Example

from .executorch import ExecuTorch
from .format import Format
from .onnx import Onnx
from .openvino import OpenVino
from .program import Program

FORMATS: dict[str, Format] = {
    format.suffix: format for format in (Onnx(), Program(), OpenVino(), ExecuTorch())
}
"""Suffix -> format. A format registered here is available to every function and command."""


def format_of(path: str | os.PathLike[str]) -> Format:
    """Find the format of a file by its suffix.

    Raises:
        ConfigError: for an unknown suffix; the message lists the known ones.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ConfigError(
            f"{path}: no runtime is registered for the suffix {suffix!r}; files to export and run "
            f"end in {', '.join(FORMATS)} (and snello.save writes .pt, .safetensors and .snello)"
        )
    return FORMATS[suffix]


def export(
    model: nn.Module,
    example_inputs: Example,
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    format: Format | None = None,
) -> Path:
    """Export a model, in evaluation mode and on the CPU, to the format of the file's suffix.

    | suffix | format | runtime | batch size |
    |---|---|---|---|
    | .onnx | ONNX | onnxruntime | any |
    | .pt2 | torch.export | torch, without the model's code | any |
    | .xml | OpenVINO | openvino (.bin next to it) | any |
    | .pte | ExecuTorch | executorch (XNNPACK) | the example's |

    Args:
        model: any module that torch.export can capture; a copy of it is exported.
        example_inputs: positional inputs with the batch on dimension 0, or a dictionary of keyword
            arguments; its tensors are the file's inputs in this order.
        path: the file to write; missing folders are created. The file appears only when it is
            complete and verified.
        verify: run the file in its runtime with the example's batch size and, where the batch is
            dynamic, with one sample more, and compare the outputs with PyTorch; with False the runtime is not needed.
        format: a format with options, such as `Onnx(opset=18)`; None chooses it by the suffix.

    Returns:
        The path of the file.

    Raises:
        ConfigError: for an unknown suffix, no inputs, or an input without a batch dimension.
        ModelError: if the model cannot be exported or does not run with another batch size, or the
            file's outputs differ by more than 1e-4 of the largest magnitude (in float16 and
            bfloat16, by more than 8 times their `torch.finfo(dtype).eps`); the message has the
            difference.
        OutputError: if the file cannot be written, with the path.
        MissingExtraError: with the extra that installs the format's packages.

    Sources: https://onnx.ai, https://docs.pytorch.org/docs/stable/export.html,
    https://docs.openvino.ai, https://docs.pytorch.org/executorch
    """
    if format is None:
        check_no_folder(path)  # before its suffix, which folders have none of
        format = format_of(path)
    return format.export(model, example_inputs, path, verify=verify)


def file_runner(
    path: str | os.PathLike[str],
    inputs: tuple[Tensor, ...] | Tensor | None = None,
    threads: int = 1,
) -> Runner:
    """Load a file of any format and prepare it to run on the CPU.

    ExecuTorch has one thread pool per process, whose size is set by the last runner created.

    Args:
        path: the file.
        inputs: its inputs in order, with the batch on dimension 0; None for random inputs with the
            shapes recorded in the file.
        threads: number of threads of the runtime.

    Returns:
        A runner; each call of it is one forward pass of these inputs.

    Raises:
        ModelError: if the file is missing or damaged, or does not run on the inputs.
        ConfigError: for an unknown suffix, or a wrong number of inputs or threads.
        MissingExtraError: without the runtime.
    """
    return format_of(path).runner(path, inputs, threads)

"""The formats that there are, found by the suffix of a file."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from snello.deploy._runners import Runner
from snello.errors import ConfigError

from .executorch import ExecuTorch
from .format import Format
from .onnx import Onnx
from .openvino import OpenVino
from .program import Program

FORMATS: dict[str, Format] = {
    format.suffix: format for format in (Onnx(), Program(), OpenVino(), ExecuTorch())
}
"""Suffix -> format. Registering another here makes it known to every function and command."""


def format_of(path: str | os.PathLike[str]) -> Format:
    """Find the format of a file by its suffix.

    Raises:
        ConfigError: naming the suffixes that there are.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ConfigError(
            f"{path}: no runtime here reads files that end in {suffix!r}; those that can be exported and run end "
            f"in {', '.join(FORMATS)} (and snello.save writes .pt and .snello)"
        )
    return FORMATS[suffix]


def export(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    format: Format | None = None,
) -> Path:
    """Export a model to the format that the suffix names: evaluation mode, on the CPU.

    ====== ============ ============================ ===========
    Suffix Format       Runtime                      Batch size
    ====== ============ ============================ ===========
    .onnx  ONNX         onnxruntime                  any
    .pt2   torch.export torch, without the model's   any
                        code
    .xml   OpenVINO     openvino (.bin next to it)    any
    .pte   ExecuTorch   executorch (XNNPACK)         the example's
    ====== ============ ============================ ===========

    Args:
        model: any module that torch.export can capture. It is not touched: a copy is exported.
        example_inputs: positional inputs; dimension 0 of each is the batch.
        path: the file to write; missing folders are made. It appears whole and verified, or not at
            all.
        verify: run the file in its runtime at the batch size of the example and at one more, and
            compare with PyTorch; False skips it (then the runtime is not needed).
        format: a format with options, such as ``Onnx(opset=18)``; None for the suffix's own.

    Returns:
        The path of the file.

    Raises:
        ConfigError: for an unknown suffix, or if there is no input, or one without a batch.
        ModelError: if the model cannot be exported, does not run at another batch size, or if the
            file's outputs differ by more than 1e-4 of the largest magnitude (in half precision by 8
            roundings of it), with the number.
        OutputError: if the file cannot be written, with the path.
        MissingExtraError: naming the extra that brings the format's packages.

    Sources: https://onnx.ai, https://docs.pytorch.org/docs/stable/export.html,
    https://docs.openvino.ai, https://docs.pytorch.org/executorch
    """
    if format is None and not Path(path).is_dir():  # a folder has an error of its own
        format = format_of(path)
    return (format or Onnx()).export(model, example_inputs, path, verify=verify)


def file_runner(
    path: str | os.PathLike[str],
    inputs: tuple[Tensor, ...] | Tensor | None = None,
    threads: int = 1,
) -> Runner:
    """Load a file of any format and make it ready to run on the CPU.

    ExecuTorch has one pool of threads per process: the runner that was made last decides for all.

    Args:
        path: the file.
        inputs: its inputs in order, with the batch on dimension 0; None for random inputs of the
            shapes that the file states.
        threads: number of threads of the runtime.

    Raises:
        ModelError: if the file is missing or damaged, or does not run on the inputs.
        ConfigError: for an unknown suffix, or a wrong number of inputs or threads.
        MissingExtraError: without the runtime.
    """
    return format_of(path).runner(path, inputs, threads)

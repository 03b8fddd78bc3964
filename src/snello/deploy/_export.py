"""A PyTorch model as one ONNX file, shown to compute the same."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from snello.errors import ModelError, require
from snello.files import check_writable, writing

from ._runners import onnx_session
from ._verify import (
    check_batch_sizes,
    checked_inputs,
    compare_outputs,
    first_line,
    on_cpu,
    one_more,
    quiet,
    shapes,
)


def export(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    path: str | os.PathLike[str],
    *,
    opset: int = 20,
    verify: bool = True,
) -> Path:
    """Export a model to ONNX: one file, any batch size, evaluation mode.

    Args:
        model: any module that torch.export can capture. It is not touched: a copy on the CPU is
        exported. example_inputs: positional inputs; dimension 0 of each is the batch.
        path: the file to write; missing folders are made. It appears whole and verified, or not at
        all. opset: version of the ONNX operator set.
        verify: run the file in ONNX Runtime at the batch size of the example and at one more, and
            compare with PyTorch; False skips it (then onnxruntime is not needed).

    Returns:
        The path of the file.

    Raises:
        ConfigError: if there is no input, or one without a batch.
        ModelError: if the model cannot be exported, does not run at another batch size, or if the
            file's outputs differ by more than 1e-4 of the largest magnitude (in half precision by 8
            roundings of it), with the number.
        OutputError: if the file cannot be written, with the path.
        MissingExtraError: without onnx, onnxscript or onnxruntime.
    """
    path = check_writable(path)
    for module in ("onnx", "onnxscript", *(("onnxruntime",) if verify else ())):
        require(module, "onnx", "ONNX export")
    inputs, clone = checked_inputs(example_inputs), on_cpu(model)
    check_batch_sizes(clone, inputs)
    with writing(path) as temporary:
        _write(clone, inputs, temporary, opset)
        if verify:
            for batch in (inputs, one_more(inputs)):
                compare_outputs(clone, batch, run_onnx(temporary), "ONNX Runtime")
    return path


def run_onnx(path: Path) -> Callable[[tuple[Tensor, ...]], Sequence[Tensor]]:
    """A function from inputs to outputs; it loads the file when it is first called.

    Raises:
        ModelError: when called, if the file cannot be loaded.
    """

    load = functools.cache(lambda: onnx_session(path, threads=1))

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        session = load()
        names = [node.name for node in session.get_inputs()]
        given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(y) for y in session.run(None, given)]

    return run


def _write(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, opset: int) -> None:
    dynamic = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=nested(model, dynamic),
                external_data=False,
                verbose=False,
            )
            assert program is not None  # the dynamo exporter returns one whenever it does not raise
            program.save(str(path), external_data=False)
    except OSError:
        raise
    except (
        Exception
    ) as error:  # torch.onnx raises whatever the capture, the decomposition or ONNX raises
        raise ModelError(
            f"{type(model).__name__} cannot be exported to ONNX opset {opset} for inputs of shape "
            f"{shapes(inputs)} with a free batch size: {first_line(error)}"
        ) from error


def nested(
    model: nn.Module, dynamic: tuple[dict[int, torch.export.Dim], ...]
) -> tuple[object, ...]:
    """Dynamic shapes as torch.export wants them: it groups what a ``forward(*inputs)`` takes into
    one tuple.
    """
    code = getattr(getattr(type(model).forward, "__code__", None), "co_argcount", None)
    return (dynamic,) if code == 1 else dynamic

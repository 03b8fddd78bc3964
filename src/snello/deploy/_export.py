"""A PyTorch model as one ONNX file, shown to compute the same."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snello.deploy._runners import onnx_session
from snello.errors import ConfigError, ModelError, OutputError, require
from snello.files import writing
from snello.graph import as_inputs

TOLERANCE = 1e-4
"""Largest accepted difference to PyTorch, relative to the largest magnitude of the output."""


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
        model: any module that torch.export can capture. It is not touched: a copy on the CPU is exported.
        example_inputs: positional inputs; dimension 0 of each is the batch.
        path: the file to write. It appears whole and verified, or not at all.
        opset: version of the ONNX operator set.
        verify: run the file in ONNX Runtime at the batch size of the example and at one more, and compare
            with PyTorch; False skips it (then onnxruntime is not needed).

    Returns:
        The path of the file.

    Raises:
        ConfigError: if there is no input, or one without a batch.
        ModelError: if the model cannot be exported, does not run at another batch size, or if the file's
            outputs differ by more than 1e-4 of the largest magnitude, with the number.
        OutputError: if the file cannot be written, with the path.
        MissingExtraError: without onnx, onnxscript or onnxruntime.
    """
    path = Path(path)
    _check_writable(path)
    for module in ("onnx", "onnxscript", *(("onnxruntime",) if verify else ())):
        require(module, "onnx", "ONNX export")
    inputs = _checked(as_inputs(example_inputs))
    clone = copy.deepcopy(model).eval().cpu()
    with writing(path) as temporary:
        _write(clone, inputs, temporary, opset)
        if verify:
            for batch in (inputs, tuple(torch.cat([x, x[:1]]) for x in inputs)):
                _verify(clone, batch, temporary)
    return path


def _checked(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not inputs or not all(x.dim() and x.shape[0] for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs) or "none"
        raise ConfigError(f"example inputs of shape {shapes}: give each a batch of at least 1 on dimension 0")
    return tuple(x.detach().cpu() for x in inputs)


def _write(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, opset: int) -> None:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=_nested(model, shapes),
                external_data=False,
                verbose=False,
            )
            assert program is not None  # the dynamo exporter returns one whenever it does not raise
            program.save(str(path), external_data=False)
    except OSError:
        raise
    except Exception as error:  # torch.onnx raises whatever the capture, the decomposition or ONNX raises
        given = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ModelError(
            f"{type(model).__name__} cannot be exported to ONNX opset {opset} for inputs of shape {given} "
            f"with a free batch size: {_first_line(error)}"
        ) from error


def _verify(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    batch = inputs[0].shape[0]
    expected = _outputs(model, inputs, batch)
    try:
        session = onnx_session(path, threads=1)
        names = [node.name for node in session.get_inputs()]
        given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        found = [torch.from_numpy(y) for y in session.run(None, given)]
    except Exception as error:
        raise ModelError(
            f"the exported {type(model).__name__} does not run in ONNX Runtime at batch size {batch}: "
            f"{_first_line(error)}"
        ) from error
    if [y.shape for y in found] != [y.shape for y in expected]:
        raise ModelError(
            f"the exported {type(model).__name__} gives outputs of shape {[tuple(y.shape) for y in found]} "
            f"at batch size {batch}; PyTorch gives {[tuple(y.shape) for y in expected]}"
        )
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        _compare(type(model).__name__, a.double(), b.double(), f"output {index}, batch size {batch}")


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...], batch: int) -> list[Tensor]:
    try:
        with torch.no_grad():
            outputs = model(*inputs)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(
            f"{type(model).__name__} itself does not run at batch size {batch}, so no export of it can: "
            f"{_first_line(error)}"
        ) from error
    return [y for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor)]


def _compare(model: str, found: Tensor, expected: Tensor, where: str) -> None:
    if expected.numel() == 0:
        return
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    # Negated, so that a NaN on either side is a failure too.
    if not difference <= TOLERANCE * scale:
        raise ModelError(
            f"the exported {model} differs from PyTorch by {difference:.3g} where {TOLERANCE * scale:.3g} is "
            f"allowed ({where}); nothing was written"
        )


def _nested(model: nn.Module, shapes: tuple[dict[int, torch.export.Dim], ...]) -> tuple[object, ...]:
    # torch.export groups what a forward(*inputs) takes into one tuple.
    code = getattr(getattr(type(model).forward, "__code__", None), "co_argcount", None)
    return (shapes,) if code == 1 else shapes


def _check_writable(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: {folder} is no folder; create it first")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(
            f"cannot write {path}: it is a folder, or {folder} is not writable; choose another path"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter prints, warns and logs; what matters comes back as an error."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__

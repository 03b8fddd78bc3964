"""Int8 quantisation of float32 ONNX files, with ranges from calibration data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.deploy._verify import batch_of, first_line, flat, quiet, relative_difference, shapes
from snello.errors import ConfigError, ModelError, require
from snello.files import folder_beside, temporary_files_in, writing
from snello.graph import Example, as_inputs, class_name

from .onnx import Onnx, onnx_session
from .onnx_counts import attribute_of

Batch = tuple[Tensor, ...] | Tensor | Mapping[str, Tensor]
"""Inputs of one call: in the order of the file's inputs, or by their names."""


@dataclass(frozen=True)
class Quantised:
    """An int8 ONNX file and its differences from the float32 file.

    Attributes:
        path: path of the file.
        bytes: size of the file.
        samples: number of samples for calibration and comparison.
        difference: largest absolute difference from the float32 outputs over the calibration
            samples, relative to the largest magnitude of an output.
        mean_difference: mean absolute difference, relative to the mean magnitude.
        agreement: share of the predictions with the same argmax of the first output, in [0, 1]: of
            the samples for a classifier, (N, classes); of the positions for a segmentation,
            (N, classes, height, width), and for a language model, (N, length, classes). None for
            outputs of other dimensions, and of one class, whose argmax is always the same.
        reduce_range: True if the weights have 7 bits.
    """

    path: Path
    bytes: int
    samples: int
    difference: float
    mean_difference: float
    agreement: float | None
    reduce_range: bool


def quantise(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    calibration: Iterable[Batch],
    *,
    reduce_range: bool | None = None,
) -> Quantised:
    """Quantise an ONNX file to int8 (QDQ).

    Activations are unsigned; weights are signed with one scale per channel. The ranges of the
    activations are the smallest and largest values on the calibration samples. Before the file
    appears it is loaded and compared with the float32 file on the same samples; measure its
    accuracy on labelled data.

    Args:
        source: the float32 file.
        path: the int8 file to write; missing folders are created.
        calibration: batches of inputs (B, ...), normalised as in deployment; 100 to 1000 samples
            are customary. They are kept in memory.
        reduce_range: quantise weights to 7 bits, for x86 CPUs without VNNI: the sum of two products
            is cut off at 16 bits there. None (default) does so if this machine is such a CPU; for a
            file that is made on one machine and runs on another, give what the other one needs.

    Raises:
        ConfigError: for calibration data that is empty or does not fit the file's inputs.
        ModelError: if the file cannot be read, quantised (the message names unsupported layers) or
            run, or its outputs are not finite.
        OutputError: if the file cannot be written, with the path.
        MissingExtraError: without onnx or onnxruntime.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    return _quantised(Path(source), Onnx().writable(path), calibration, reduce_range, str(source))


def _quantised(
    source: Path,
    path: Path,
    calibration: Iterable[Batch],
    reduce_range: bool | None,
    what: str,
) -> Quantised:
    require("onnx", "onnx", "int8 quantisation")
    names = [node.name for node in onnx_session(source).get_inputs()]
    batches = _checked(calibration, names)
    _check_layers(source, what)
    reduce_range = _sums_overflow() if reduce_range is None else reduce_range
    with temporary_files_in(path.parent), writing(path) as temporary:
        _write(source, temporary, _Reader(names, batches), reduce_range, what)
        return _compared(source, temporary, batches, path, what, reduce_range)


def export_int8(
    model: nn.Module,
    example_inputs: Example,
    path: str | os.PathLike[str],
    calibration: Iterable[Batch],
    *,
    reduce_range: bool | None = None,
) -> Quantised:
    """Export a model to ONNX, verified, and [`quantise`][snello.deploy.formats.quantise] it to
    int8.

    Args:
        model: any module that torch.export can capture; it is not changed.
        example_inputs: positional inputs with the batch on dimension 0, or a dictionary of keyword
            arguments.
        path: the int8 file to write; the float32 file is temporary.
        calibration: batches of inputs (B, ...), normalised as in deployment: tensors, tuples in the
            order of the file's inputs, or dictionaries by their names.
        reduce_range: see [`quantise`][snello.deploy.formats.quantise].

    Raises:
        ConfigError: for unusable example inputs or calibration data.
        ModelError: if the model cannot be exported, or the file not quantised.
        OutputError: if the file cannot be written, with the path.
        MissingExtraError: without onnx, onnxscript or onnxruntime.
    """
    path = Onnx().writable(path)
    with folder_beside(path) as folder:
        source = Onnx().export(model, example_inputs, folder / "float32.onnx")
        return _quantised(source, path, calibration, reduce_range, class_name(model))


class _Reader:
    """Calibration data reader for ONNX Runtime: returns one feed per call, then None."""

    def __init__(self, names: list[str], batches: list[tuple[Tensor, ...]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = (
            {name: x.numpy() for name, x in zip(names, batch, strict=True)} for batch in batches
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _checked(calibration: Iterable[Batch], names: list[str]) -> list[tuple[Tensor, ...]]:
    batches = [tuple(x.detach().cpu() for x in _in_order(batch, names)) for batch in calibration]
    if not batches or not all(batch_of(batch) for batch in batches):
        raise ConfigError(
            "calibration has no samples: pass batches of real inputs, 100 samples or more"
        )
    for batch in batches:
        if len(batch) != len(names):
            raise ConfigError(
                f"calibration gives {len(batch)} inputs of shape {shapes(batch)}; the file takes {', '.join(names)}. "
                "Remove the labels from batches of (image, label)"
            )
        if not all(bool(x.isfinite().all()) for x in batch):
            raise ConfigError(
                "calibration contains NaN or infinite values, which have no range: remove those "
                "samples"
            )
    return batches


def _in_order(batch: Batch, names: list[str]) -> tuple[Tensor, ...]:
    if not isinstance(batch, Mapping):
        return as_inputs(batch)
    if set(batch) != set(names):
        raise ConfigError(
            f"calibration gives the inputs {', '.join(batch)}; the file takes {', '.join(names)}"
        )
    return tuple(batch[name] for name in names)


def _check_layers(source: Path, what: str) -> None:
    """Check for layers on which ONNX Runtime's quantiser fails without naming them.

    Raises:
        ModelError: with the names of the layers.
    """
    onnx = require("onnx", "onnx", "int8 quantisation")
    nodes = [node for node in onnx.load(str(source)).graph.node if node.op_type == "ConvTranspose"]
    if grouped := [_layer_of(node) for node in nodes if attribute_of(node, "group", 1) > 1]:
        raise ModelError(
            f"{what} cannot be quantised to int8: ONNX Runtime's quantiser has no scale per channel for "
            f"transposed convolutions with groups ({', '.join(map(repr, grouped[:5]))}); build them with groups=1, or "
            "ship the float32 file"
        )


def _layer_of(node: Any) -> str:
    """Name of a node's layer in the PyTorch model, from its weight; else the node's name."""
    weight = node.input[1]
    return str(
        weight.removesuffix(".weight") if weight.endswith(".weight") else node.name or node.op_type
    )


def _write(source: Path, path: Path, reader: _Reader, reduce_range: bool, what: str) -> None:
    quantization = require("onnxruntime.quantization", "onnx", "int8 quantisation")
    kinds = quantization.QuantType
    try:
        with quiet(), folder_beside(path) as folder:
            prepared = folder / "prepared.onnx"
            # Infers shapes and fuses BatchNorm, so that ranges belong to the graph that will run.
            quantization.quant_pre_process(str(source), str(prepared))
            quantization.quantize_static(
                prepared,
                path,
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=kinds.QUInt8,  # signed activations are 2.5 times slower on x86
                weight_type=kinds.QInt8,
                per_channel=True,
                reduce_range=reduce_range,
            )
    except OSError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no public base class
        raise ModelError(f"{what} cannot be quantised to int8: {first_line(error)}") from error


@cache
def _sums_overflow() -> bool:
    """Test whether ONNX Runtime cuts off sums of int8 products at 16 bits on this machine."""
    parser = require("onnx.parser", "onnx", "int8 quantisation")
    runtime = require("onnxruntime", "onnx", "int8 quantisation")
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13]>
        sums (uint8[1, 4] x, int8[4, 1] w) => (int32[1, 1] y) { y = MatMulInteger(x, w) }"""
    )
    largest = {
        "x": torch.full((1, 4), 255, dtype=torch.uint8),
        "w": torch.full((4, 1), 127, dtype=torch.int8),
    }
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {name: value.numpy() for name, value in largest.items()})
    return int(found.item()) != 4 * 255 * 127


def _compared(
    source: Path,
    int8: Path,
    batches: list[tuple[Tensor, ...]],
    path: Path,
    what: str,
    reduce_range: bool,
) -> Quantised:
    outputs = [_first_outputs(file, batches) for file in (source, int8)]
    expected, found = (torch.cat([y.flatten() for y in of_file]) for of_file in outputs)
    if not bool(found.isfinite().all()):
        raise ModelError(
            f"the int8 outputs of {what} are not finite; nothing was written to {path}"
        )
    error, scale = (found - expected).abs().double(), expected.abs().double()
    return Quantised(
        path=path,
        bytes=int8.stat().st_size,
        samples=sum(batch_of(batch) for batch in batches),
        difference=relative_difference(found, expected),
        mean_difference=float(error.mean() / scale.mean())
        if bool(scale.any())
        else float(error.mean()),
        agreement=_agreement(*outputs),
        reduce_range=reduce_range,
    )


CLASS_AXES = {2: 1, 3: 2, 4: 1}
"""Dimensions of an output -> the one of the classes."""


def _agreement(expected: list[Tensor], found: list[Tensor]) -> float | None:
    axis = CLASS_AXES.get(expected[0].dim())
    if axis is None or expected[0].shape[axis] < 2:
        return None
    same = [a.argmax(axis) == b.argmax(axis) for a, b in zip(expected, found, strict=True)]
    return float(torch.cat([s.flatten() for s in same]).double().mean())


def _first_outputs(file: Path, batches: list[tuple[Tensor, ...]]) -> list[Tensor]:
    bind = Onnx().load((file,), threads=1)
    try:
        return [flat(bind(batch)())[0] for batch in batches]
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{file} does not run on calibration data of shape {shapes(batches[0])}: {first_line(error)}"
        ) from error

"""Counts of an ONNX file: parameters, operations, bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from snello.deploy._device_bench import KitError, random_feed, session_of
from snello.deploy._footprint import Footprint
from snello.errors import ModelError, require
from snello.neurons import outputs_first

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that count as MACs; their second input is the weight, if it is a constant."""


@dataclass(frozen=True)
class _Weights:
    """Constants of a graph.

    Attributes:
        values: name -> value; quantised ones as the integers minus their zero point.
        helpers: names of scales and zero points, which are not parameters.
    """

    values: dict[str, Tensor]
    helpers: frozenset[str]


def onnx_footprint(path: str | os.PathLike[str]) -> Footprint:
    """Count the parameters, operations and bytes of an ONNX file.

    Args:
        path: the file, float32 or quantised (QDQ). Only the batch dimension may be dynamic.

    Returns:
        The counts. `parameters` and `nonzeros` refer to floating-point and quantised constants
        without scales and zero points; they may be below the model's own, because exporters fold
        BatchNorm into convolutions. `macs` are those of Conv, ConvTranspose, Gemm and MatMul for
        one sample, with shapes from a run; `dead_neurons` are those of the same operators with
        constant weights; `bytes` is the stored size of all constants.

    Raises:
        ModelError: if the file cannot be read or does not run on one sample.
        MissingExtraError: without onnx or onnxruntime.
    """
    onnx = require("onnx", "onnx", "counting in an ONNX file")
    model = onnx.load(str(path))
    weights = _constants(onnx, model.graph)
    parameters = [tensor for name, tensor in weights.values.items() if name not in weights.helpers]
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    sizes = _shapes(onnx, model, nodes, path)
    return Footprint(
        parameters=sum(tensor.numel() for tensor in parameters),
        nonzeros=sum(int(torch.count_nonzero(tensor)) for tensor in parameters),
        dead_neurons=sum(_dead(node, weights.values) for node in _once(nodes)),
        macs=sum(_macs(node, sizes) for node in nodes),
        bytes=_bytes(onnx, model.graph),
    )


def _constants(onnx: Any, graph: Any) -> _Weights:
    kept = {onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}
    raw = {t.name: t for t in graph.initializer if t.data_type not in kept}
    values = {
        name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for name, t in raw.items()
    }
    helpers: set[str] = set()
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            helpers.update(node.input[1:])
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            # The dequantised constant is the weight: zero where the integer equals the zero point.
            quantised, axis = values[node.input[0]].long(), attribute_of(node, "axis", 1)
            zero = (
                values[node.input[2]].long()
                if len(node.input) > 2
                else torch.zeros((), dtype=torch.long)
            )
            shape = [-1 if i == axis and zero.dim() else 1 for i in range(quantised.dim())]
            values[node.input[0]] = quantised - (zero.reshape(shape) if quantised.dim() else zero)
    for node in graph.node:
        # Consumers refer to DequantizeLinear's output, an alias that must not be counted twice.
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
            helpers.add(node.output[0])
    return _Weights(values, frozenset(helpers))


def attribute_of(node: Any, name: str, default: int) -> int:
    """An integer attribute of a node, or the default of its operator."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _once(nodes: list[Any]) -> list[Any]:
    """One node per weight, so that neurons of a layer called twice are counted once."""
    return list({node.input[1]: node for node in nodes if len(node.input) > 1}.values())


def _dead(node: Any, values: Mapping[str, Tensor]) -> int:
    """Number of neurons whose weights are all zero; 0 if the weight is not a constant."""
    weight = values.get(node.input[1])
    if weight is None or weight.dim() < 2:
        return 0
    if node.op_type == "ConvTranspose":  # (in, out/groups, *kernel)
        weight = outputs_first(weight, attribute_of(node, "group", 1))
        return int((weight.flatten(1) == 0).all(1).sum())
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute_of(node, "transB", 0)):
        return int((weight.flatten(1) == 0).all(1).sum())
    return int((weight == 0).all(-2).sum())  # (…, in, out)


def _macs(node: Any, sizes: Mapping[str, tuple[int, ...]]) -> int:
    left, right, out = (sizes[name] for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        return prod(out) * prod(right[1:])
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    inner = left[0] if node.op_type == "Gemm" and attribute_of(node, "transA", 0) else left[-1]
    return prod(out) * inner


def _shapes(
    onnx: Any, model: Any, nodes: list[Any], path: str | os.PathLike[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the nodes' inputs and outputs, from a run on one sample."""
    wanted = {name for node in nodes for name in (*node.input[:2], node.output[0])}
    sizes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    opened = type(model)()
    opened.CopyFrom(model)
    opened.graph.output.extend(
        onnx.ValueInfoProto(name=n) for n in sorted(wanted - known - set(sizes))
    )
    try:
        session = session_of(opened.SerializeToString(), threads=1)
        feed = random_feed(session, 1)
        names = [value.name for value in session.get_outputs()]
        found = session.run(names, feed)
    except KitError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # onnxruntime has its own exceptions, without a public root
        raise ModelError(f"{path} does not run on one sample: {error}") from error
    sizes.update({name: tuple(value.shape) for name, value in zip(names, found, strict=True)})
    sizes.update({name: tuple(value.shape) for name, value in feed.items()})
    return sizes


def _bytes(onnx: Any, graph: Any) -> int:
    width = {
        t.data_type: onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in graph.initializer
    }
    return sum(int(width[t.data_type]) * prod(t.dims) for t in graph.initializer)

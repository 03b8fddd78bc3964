"""ONNX models of single operations, to be timed on a device.

A model holds the operation several times, side by side: the difference between the times of a model
with many branches and of one with a single branch is free of the runtime's overhead per call and of
conversions of the input's layout. Weights are constants that the runtime computes when it loads the
model, so that a model has one or two kilobytes.
"""

from __future__ import annotations

from typing import Any

from snello.errors import require

from .operation import Operation

OPSET = 17
IR_VERSION = 8
"""Versions that ONNX Runtime 1.12 and later can read: boards have old ones."""

SCALE = 0.05


def operation_model(operation: Operation, branches: int = 1) -> bytes:
    """An ONNX model that runs an operation a number of times on one input.

    Args:
        operation: the operation.
        branches: number of its copies, with different weights, so that the runtime does not merge
            them.

    Raises:
        MissingExtraError: without onnx.
    """
    onnx = require("onnx", "onnx", "a table of operations")
    graph = _Graph(onnx)
    {"conv": _conv, "linear": _linear, "matmul": _matmul}[operation.kind](
        graph, operation, branches
    )
    return bytes(graph.serialised())


class _Graph:
    """A graph under construction."""

    def __init__(self, onnx: Any) -> None:
        self._helper, self._types = onnx.helper, onnx.TensorProto
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = self._name()
        self._nodes.append(
            self._helper.make_node(kind, list(inputs), [name], domain=domain, **attributes)
        )
        return name

    def input(self, shape: tuple[int, ...]) -> str:
        """Add a float32 input."""
        name = f"x{len(self._inputs)}"
        self._inputs.append(self._helper.make_tensor_value_info(name, self._types.FLOAT, shape))
        return name

    def output(self, name: str) -> None:
        """Make a value an output, of a shape that the runtime infers."""
        self._outputs.append(self._helper.make_empty_tensor_value_info(name))
        self._outputs[-1].type.tensor_type.elem_type = self._types.FLOAT

    def filled(self, shape: tuple[int, ...], value: float, kind: str = "FLOAT") -> str:
        """A constant tensor, stored as its shape and one value."""
        sizes = self._constant("INT64", [len(shape)], list(shape))
        scalar = self._helper.make_tensor("", getattr(self._types, kind), [1], [value])
        return self.node("ConstantOfShape", sizes, value=scalar)

    def scalar(self, value: float, kind: str = "FLOAT") -> str:
        """A constant without dimensions."""
        return self._constant(kind, [], [value])

    def _constant(self, kind: str, shape: list[int], values: list[Any]) -> str:
        name = self._name()
        self._constants.append(
            self._helper.make_tensor(name, getattr(self._types, kind), shape, values)
        )
        return name

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def serialised(self) -> Any:
        """The model as bytes."""
        helper = self._helper
        graph = helper.make_graph(
            self._nodes, "operation", self._inputs, self._outputs, self._constants
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return model.SerializeToString()


def _conv(graph: _Graph, operation: Operation, branches: int) -> None:
    samples, into, out, groups, *size = operation.shape
    kernel, strides, padding, dilation = operation.split_options()
    attributes: dict[str, Any] = {
        "kernel_shape": kernel, "strides": strides, "pads": (*padding, *padding), "dilations": dilation,
        "group": groups,
    }  # fmt: skip
    weight = (out, into // max(groups, 1), *kernel)
    x = graph.input((samples, into, *size))
    if operation.precision == "int8":
        return _quantised(graph, x, weight, (out,), branches, "QLinearConv", attributes)
    found = [
        graph.node("Conv", x, graph.filled(weight, 0.01 + 0.001 * i), graph.filled((out,), 0.1),
                   **attributes)
        for i in range(branches)
    ]  # fmt: skip
    total = found[0]
    for other in found[1:]:  # the runtime computes the sum within the convolution
        total = graph.node("Add", other, total)
    graph.output(total)
    return None


def _linear(graph: _Graph, operation: Operation, branches: int) -> None:
    rows, into, out = operation.shape
    x = graph.input((rows, into))
    if operation.precision == "int8":
        return _quantised(graph, x, (into, out), (), branches, "QLinearMatMul", {})
    for i in range(branches):
        weight = graph.filled((into, out), 0.01 + 0.001 * i)
        graph.output(graph.node("Gemm", x, weight, graph.filled((out,), 0.1)))
    return None


def _matmul(graph: _Graph, operation: Operation, branches: int) -> None:
    products, rows, inner, columns = operation.shape
    x = graph.input((products, rows, inner))
    for _ in range(branches):
        graph.output(graph.node("MatMul", x, graph.input((products, inner, columns))))


def _quantised(
    graph: _Graph, x: str, weight: tuple[int, ...], bias: tuple[int, ...], branches: int,
    kind: str, attributes: dict[str, Any],
) -> None:  # fmt: skip
    """Integer copies of an operation on the quantised input, added up as integers."""
    scale, zero = graph.scalar(SCALE), graph.scalar(0, "UINT8")
    signed_zero = graph.scalar(0, "INT8")
    codes = graph.node("QuantizeLinear", x, scale, zero)
    total = ""
    for i in range(branches):
        weights = graph.filled(weight, 1 + i, "INT8")
        biases = (graph.filled(bias, 1, "INT32"),) if bias else ()
        found = graph.node(
            kind, codes, scale, zero, weights, scale, signed_zero, scale, zero, *biases, **attributes
        )  # fmt: skip
        total = found if not total else graph.node(
            "QLinearAdd", total, scale, zero, found, scale, zero, scale, zero, domain="com.microsoft"
        )  # fmt: skip
    graph.output(graph.node("DequantizeLinear", total, scale, zero))

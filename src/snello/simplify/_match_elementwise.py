"""Operations that work element by element: activations, arithmetic, dropout."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import Graph, shape_of

from ._calls import DROPOUTS
from ._rule import Add, Elementwise, Parameter, PerChannel, Rule
from ._signal import Signal
from ._torchvision import is_stochastic_depth

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold,
    nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.RReLU, nn.Identity, nn.modules.dropout._DropoutNd,
)  # fmt: skip
_FUNCTIONS = {
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish,
    F.sigmoid, F.tanh, torch.sigmoid, torch.tanh, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.softsign,
    F.logsigmoid, F.threshold, F.hardshrink, F.softshrink, F.tanhshrink, torch.exp, torch.abs, torch.sqrt,
    torch.rsqrt, torch.square, torch.log, torch.neg, torch.clamp, torch.clamp_min, torch.pow, torch.sin, torch.cos,
    torch.erf, torch.clone, operator.neg, operator.pow, operator.add, operator.iadd, operator.sub, operator.isub,
    operator.mul, operator.imul, operator.truediv, operator.itruediv, torch.add, torch.sub, torch.mul, torch.div,
    torch.multiply, torch.subtract, torch.divide, torch.maximum, torch.minimum, torch.true_divide, torch.max, torch.min,
}  # fmt: skip
_METHODS = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "abs", "sqrt", "rsqrt", "square", "log", "neg",
    "clamp", "clamp_", "clamp_min", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "clone",
    "contiguous", "detach", "hardtanh", "maximum", "minimum",
}  # fmt: skip
_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


def is_elementwise_module(module: nn.Module) -> bool:
    """Activations without parameters, dropout, and whatever else is the identity in evaluation mode."""
    return isinstance(module, _MODULES) or is_stochastic_depth(module)


def rule(graph: Graph, node: fx.Node, axes: dict[fx.Node, int]) -> Rule | None:
    """The rule of an elementwise operation; None for another one, and where no channels are known."""
    if not _is_elementwise(graph, node) or (shape := shape_of(node)) is None:
        return None
    tensors = [a for a in dict.fromkeys(node.all_input_nodes) if shape_of(a) is not None]
    axis = _channel_axis(tensors, axes, shape)
    if axis is None:
        return None
    found = _sorted(graph, node, tensors, axes, shape, axis)
    if found is None:
        return None
    operands, parameters, shared, unknown = found
    own_axes = tuple(axis - len(shape) + len(shape_of(a) or ()) for a in operands)
    alone = not parameters and not unknown
    if _is_sum(node) and alone and all(shape_of(a) == shape for a in operands):
        first, second = node.args[:2]
        return Add(node, (first, second), (axis, axis), axis)  # type: ignore[arg-type]
    if _is_identity(graph, node):
        return PerChannel(node, tuple(operands), own_axes, axis, pointwise=True)
    function = _evaluation(graph, node, [*operands, *(graph_node for graph_node, _ in parameters)])
    return Elementwise(
        node, (*operands, *shared), (*own_axes, *(axes[a] for a in shared)), axis, function, unknown,
        node.target in _PRODUCTS, tuple(parameter for _, parameter in parameters), len(shared),
    )  # fmt: skip


def _is_elementwise(graph: Graph, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = graph.layer(node)
        return module is not None and is_elementwise_module(module)
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target in (torch.max, torch.min) and (
        len(node.args) < 2 or not isinstance(node.args[1], fx.Node)
    ):
        return False  # a reduction
    return node.target in _FUNCTIONS or _is_dropout(node)


def _is_identity(graph: Graph, node: fx.Node) -> bool:
    """In evaluation mode: dropout in all its spellings, copies."""
    if node.op == "call_module":
        module = graph.layer(node)
        dropout = isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd))
        return dropout or is_stochastic_depth(module)
    if node.op == "call_method":
        return node.target in ("contiguous", "clone", "detach")
    return node.target is torch.clone or _is_dropout(node)


def _is_dropout(node: fx.Node) -> bool:
    """Functional dropout, torchvision's of whole residual branches included."""
    return node.target in DROPOUTS or getattr(node.target, "__name__", "") == "stochastic_depth"


def _is_sum(node: fx.Node) -> bool:
    both = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return node.target in _ADDITIONS and both and not node.kwargs


def _channel_axis(tensors: Sequence[fx.Node], axes: dict[fx.Node, int], shape: tuple[int, ...]) -> int | None:
    """The axis of the output's channels: that of the operands which have as many."""
    for a in tensors:
        own = shape_of(a)
        if a in axes and own is not None:
            axis = axes[a] + len(shape) - len(own)
            if own[axes[a]] == shape[axis]:
                return axis
    return None


Sorted = tuple[list[fx.Node], list[tuple[fx.Node, Parameter]], list[fx.Node], bool]


def _sorted(
    graph: Graph,
    node: fx.Node,
    tensors: Sequence[fx.Node],
    axes: dict[fx.Node, int],
    shape: tuple[int, ...],
    axis: int,
) -> Sorted | None:
    """Operands read channel by channel, bare parameters, operands whose one channel all others meet, and
    whether anything is read whose value is not known. None if channels meet channels of another axis."""
    operands, parameters, shared = [], [], []
    unknown = len(tensors) < len(node.all_input_nodes)
    for a in tensors:
        own = shape_of(a) or ()
        own_axis = axis - len(shape) + len(own)
        broadcast = own_axis < 0 or own[own_axis] != shape[axis]
        if broadcast:
            if a in axes and own[axes[a]] > 1:
                return None
            shared += [a] if a in axes else []
            unknown = unknown or _number(graph, a) is None
        elif axes.get(a, own_axis) != own_axis:
            return None
        elif (parameter := _parameter(graph, a, own_axis)) is not None:
            parameters.append((a, parameter))
        else:
            operands.append(a)
    return operands, parameters, shared, unknown


def _number(graph: Graph, node: fx.Node) -> Tensor | None:
    """The value of a parameter or buffer of one element, in float64; None for anything else."""
    if node.op != "get_attr":
        return None
    owner, _, attribute = str(node.target).rpartition(".")
    tensor = getattr(graph.module.get_submodule(owner), attribute)
    return tensor.detach().cpu().double().reshape(1) if tensor.numel() == 1 else None


def _parameter(graph: Graph, node: fx.Node, axis: int) -> Parameter | None:
    """A bare parameter or buffer that nothing else reads."""
    if node.op != "get_attr" or len(node.users) != 1:
        return None
    name = str(node.target)
    owner, _, attribute = name.rpartition(".")
    holder = graph.module.get_submodule(owner)
    same_name = [n for n in graph.nodes if n.op == "get_attr" and str(n.target) == name]
    if (
        len(same_name) > 1
        or graph.is_tied(name)
        or attribute not in {**holder._parameters, **holder._buffers}
    ):
        return None
    tensor = getattr(holder, attribute).detach().cpu().double().movedim(axis, 0)
    tensor = tensor.reshape(len(tensor), -1)  # a parameter with one axis, too: layer scale on tokens
    uniform = (tensor == tensor[:, :1]).all(1)
    return Parameter(name, axis, Signal.of(uniform, tensor[:, 0]))


def _evaluation(
    graph: Graph, node: fx.Node, operands: Sequence[fx.Node]
) -> Callable[[Sequence[Tensor]], Tensor]:
    """The operation on one float64 value per channel in place of each tensor."""

    def function(values: Sequence[Tensor]) -> Tensor:
        # In-place operations must not reach the signals.
        by_node = {a: value.clone() for a, value in zip(operands, values, strict=True)}
        unknown = torch.zeros_like(values[0])  # what is computed from it is not used

        def known(a: fx.Node) -> Any:
            number = _number(graph, a)
            return by_node.get(a, unknown if number is None else number)

        args, kwargs = fx.map_arg(node.args, known), fx.map_arg(node.kwargs, known)
        if node.op == "call_module":
            module = graph.layer(node)
            assert module is not None
            return module(*args, **kwargs)  # type: ignore[no-any-return]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)  # type: ignore[no-any-return]
        return node.target(*args, **kwargs)  # type: ignore[operator, no-any-return]

    return function

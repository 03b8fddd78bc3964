"""Elementwise operations: activations, arithmetic, dropout."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import known_shape, shape_of
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.plan import Slice

from .call import Call, one_by_one, sizes
from .channelwise import PerChannel
from .operation import Lowered, Operation, Placement, Wanted, join
from .registry import rule_for


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer that is itself an operand, of one operation only, with channels.

    Attributes:
        name: qualified name.
        axis: axis of the channels.
        signal: constant in the channels whose entries are all equal.
    """

    name: str
    axis: int
    signal: Signal


@dataclass(frozen=True, eq=False)
class Elementwise(Operation):
    """An elementwise function of tensors, with broadcasting.

    Attributes:
        function: maps constants, float64, shape (C,), one tensor per operand and parameter, to
            those of the output.
        unknown: whether it also reads a value that is not known per channel, such as another
            tensor or a computed number. Then no output is constant, except zero products.
        product: whether it multiplies, so that the output is zero where one factor is.
        parameters: bare parameters among the operands, which can be narrowed to any channels.
        shared: number of the trailing operands with a single channel, which is broadcast to all
            channels.
        unmade: boolean, shape (C,): channels that are not computed, because a bypass reads the
            operands instead; None if there are none.
    """

    function: Callable[[Sequence[Tensor]], Tensor]
    unknown: bool
    product: bool
    parameters: tuple[Parameter, ...] = ()
    shared: int = 0
    unmade: Tensor | None = None

    @property
    def own(self) -> int:
        """Number of operands with one channel for each channel of the output."""
        return len(self.operands) - self.shared

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        return self.operands[: self.own]

    @property
    def is_step(self) -> bool:
        alone = not (self.unknown or self.parameters or self.shared) and len(self.operands) == 1
        return alone and known_shape(self.node) == known_shape(self.operands[0])

    def map_values(self, values: Tensor) -> Tensor:
        return self.function([values])

    def _signals(self, signals: Sequence[Signal]) -> list[Signal]:
        return [*signals[: self.own], *(p.signal for p in self.parameters)]

    def propagate(self, *signals: Signal) -> Signal:
        read = self._signals(signals)
        constant = torch.stack([s.constant for s in read]).all(0) & (not self.unknown)
        out = Signal.of(constant, self.function([s.value for s in read]).expand(constant.shape))
        if not self.product:
            return out
        zero = torch.stack([s.zero for s in read]).any(0)
        return Signal(out.constant | zero, out.value.masked_fill(zero, 0))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        all_or_none = [useful.any().reshape(1)] * self.shared
        if not self.product:
            return [useful] * self.own + all_or_none
        # A channel that is multiplied by a constant zero is not needed.
        zero = [s.zero for s in self._signals(signals)]
        others = (sum(zero[:i] + zero[i + 1 :], torch.zeros_like(useful)) for i in range(self.own))
        return [useful & ~other for other in others] + all_or_none

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [channels] * self.own + [torch.zeros(1, dtype=torch.bool)] * self.shared

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        own = list(received[: self.own])
        if self.unmade is not None:
            own = [layout.without(self.unmade) for layout in own]
        wanted, produced = join(self, useful, own)
        # The single channel of a shared operand is needed as long as any channel is present.
        one = torch.arange(min(1, len(produced.order)))
        return wanted + [layout.arranged(one) for layout in received[self.own :]], produced

    def lower(self, placement: Placement) -> Lowered:
        produced = placement.produced
        cut = () if produced.is_natural or produced.is_empty else self.parameters
        kept = tuple(produced.order.tolist())
        return Lowered(
            edits=self.adapters(placement),
            parameters={parameter.name: (Slice(parameter.axis, kept),) for parameter in cut},
        )


_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
    nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.RReLU,
)  # fmt: skip
_IDENTITY_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)
DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d, F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}  # fmt: skip
"""Functional dropout -> the equivalent module."""
_FUNCTIONS = (
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu,
    F.mish, F.sigmoid, F.tanh, torch.sigmoid, torch.tanh, F.hardswish, F.hardsigmoid, F.hardtanh,
    F.softplus, F.softsign, F.logsigmoid, F.threshold, F.hardshrink, F.softshrink, F.tanhshrink, torch.exp,
    torch.abs, torch.sqrt, torch.rsqrt, torch.square, torch.log, torch.neg, torch.clamp, torch.clamp_min,
    torch.pow, torch.sin, torch.cos, torch.erf, operator.neg, operator.pow, operator.add, operator.iadd,
    operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv, operator.itruediv,
    torch.add, torch.sub, torch.mul, torch.div, torch.multiply, torch.subtract, torch.divide,
    torch.maximum, torch.minimum, torch.true_divide, torch.addcmul, torch.addcdiv,
)  # fmt: skip
_METHODS = (
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "abs", "sqrt", "rsqrt", "square", "log",
    "neg", "clamp", "clamp_", "clamp_min", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
    "hardtanh", "maximum", "minimum",
)  # fmt: skip
_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"}


@rule_for(*_MODULES, *_FUNCTIONS, *_METHODS)
def elementwise(call: Call) -> Operation | None:
    """Activations and arithmetic with broadcasting."""
    found = operands_of(call)
    if found is None:
        return None
    function = _evaluation(call, [*found.operands, *(node for node, _ in found.parameters)])
    return _of(call, found, function)


@rule_for(torch.where, "masked_fill", "masked_fill_")
def masked(call: Call) -> Operation | None:
    """Selection by a mask, whose values are unknown: no output is treated as constant."""
    found = operands_of(call)
    return (
        None if found is None else _of(call, replace(found, unknown=True), lambda values: values[0])
    )


def _of(call: Call, found: Operands, function: Callable[[Sequence[Tensor]], Tensor]) -> Elementwise:
    """The operation of a call, from its sorted operands."""
    axes = (*found.own_axes, *(call.axes[a] for a in found.shared))
    return Elementwise(
        call.node, (*found.operands, *found.shared), axes, found.axis, function, found.unknown,
        call.node.target in _PRODUCTS, tuple(parameter for _, parameter in found.parameters),
        len(found.shared),
    )  # fmt: skip


@rule_for(torch.max, torch.min)
def extremum(call: Call) -> Operation | None:
    """`torch.max(a, b)`; with one tensor it is a reduction."""
    binary = len(call.node.args) > 1 and isinstance(call.node.args[1], fx.Node)
    return elementwise(call) if binary else None


@rule_for(*_IDENTITY_MODULES, *DROPOUTS, torch.clone, "contiguous", "clone", "detach")
def identity(call: Call) -> Operation | None:
    """Dropout in every form, and copies: the identity in evaluation mode."""
    found = operands_of(call)
    if found is None:
        return None
    return PerChannel(call.node, tuple(found.operands), found.own_axes, found.axis, pointwise=True)


@dataclass(frozen=True)
class Operands:
    """Tensors that an elementwise operation reads, sorted by their channels.

    Attributes:
        axis: axis of the output's channels.
        operands: tensors with one channel for each channel of the output.
        own_axes: axes of the channels of `operands`.
        parameters: bare parameters, with their nodes.
        shared: tensors with a single channel, which is broadcast.
        unknown: whether a value is read that is not known per channel.
    """

    axis: int
    operands: list[fx.Node]
    own_axes: tuple[int, ...]
    parameters: list[tuple[fx.Node, Parameter]]
    shared: list[fx.Node]
    unknown: bool

    @property
    def alone(self) -> bool:
        """True if nothing but the operands is read."""
        return not self.parameters and not self.unknown


def operands_of(call: Call) -> Operands | None:
    """Sort the tensors of a call by their channels.

    None if no tensor has known channels, or if the channels of two tensors are on different axes of
    the output.
    """
    shape = call.shape
    if shape is None:
        return None
    tensors = [a for a in dict.fromkeys(call.node.all_input_nodes) if shape_of(a) is not None]
    axis = _channel_axis(call, tensors, shape)
    if axis is None:
        return None
    operands, parameters, shared = [], [], []
    unknown = len(tensors) < len(call.node.all_input_nodes)
    for a in tensors:
        own = sizes(a)
        own_axis = axis - len(shape) + len(own)
        if own_axis < 0 or own[own_axis] != shape[axis]:  # broadcast
            if a in call.axes and own[call.axes[a]] > 1:
                return None
            shared += [a] if a in call.axes else []
            unknown = unknown or _number(call, a) is None
        elif call.axes.get(a, own_axis) != own_axis:
            return None
        elif (parameter := bare_parameter(call, a, own_axis)) is not None:
            parameters.append((a, parameter))
        else:
            operands.append(a)
    own_axes = tuple(axis - len(shape) + len(sizes(a)) for a in operands)
    return Operands(axis, operands, own_axes, parameters, shared, unknown)


def _channel_axis(call: Call, tensors: Sequence[fx.Node], shape: tuple[int, ...]) -> int | None:
    """Axis of the output's channels, from the first operand whose channels are not broadcast."""
    for a in tensors:
        if a in call.axes:
            own = sizes(a)
            axis = call.axes[a] + len(shape) - len(own)
            if own[call.axes[a]] == shape[axis]:
                return axis
    return None


def _number(call: Call, node: fx.Node) -> Tensor | None:
    """The value of a parameter or buffer of one element, in float64; None for anything else."""
    if node.op != "get_attr":
        return None
    owner, _, attribute = str(node.target).rpartition(".")
    tensor = getattr(call.graph.module.get_submodule(owner), attribute)
    return tensor.detach().cpu().double().reshape(1) if tensor.numel() == 1 else None


def bare_parameter(call: Call, node: fx.Node, axis: int) -> Parameter | None:
    """Return the parameter or buffer that an operand is, or is a view of.

    None if the operand is computed, or if the parameter has other readers or other names: then it
    must not be narrowed.

    Args:
        call: the call of the operation.
        node: an operand of it.
        axis: axis of the channels in the operand.
    """
    source, own_axis = (node, axis) if node.op == "get_attr" else _viewed(node, axis)
    if source is None or len(source.users) != 1 or len(node.users) != 1:
        return None
    name = str(source.target)
    owner, _, attribute = name.rpartition(".")
    holder = call.graph.module.get_submodule(owner)
    same_name = [n for n in call.graph.nodes if n.op == "get_attr" and str(n.target) == name]
    if (
        len(same_name) > 1
        or call.graph.is_tied(name)
        or attribute not in {**holder._parameters, **holder._buffers}
    ):
        return None
    tensor = getattr(holder, attribute).detach().cpu().double().movedim(own_axis, 0)
    tensor = tensor.reshape(len(tensor), -1)
    uniform = (tensor == tensor[:, :1]).all(1)
    return Parameter(name, own_axis, Signal.of(uniform, tensor[:, 0]))


def _viewed(node: fx.Node, axis: int) -> tuple[fx.Node | None, int]:
    """The vector of which a node is a view with its entries on one axis: `w.view(1, -1, 1)`.

    The size of that axis must be written as -1, so that the view also works for a shorter vector.

    Returns:
        The node of the vector, or None; and the axis of its entries, 0.
    """
    source = node.args[0] if node.args else None
    if node.target not in ("view", "reshape") or not isinstance(source, fx.Node):
        return None, 0
    written = one_by_one(node.args[1:])
    alone = source.op == "get_attr" and len(sizes(source)) == 1
    return (source if alone and written[axis : axis + 1] == (-1,) else None), 0


def _evaluation(call: Call, operands: Sequence[fx.Node]) -> Callable[[Sequence[Tensor]], Tensor]:
    """A function that runs the call on one float64 value per channel instead of each tensor."""
    node, module = call.node, call.module

    def function(values: Sequence[Tensor]) -> Tensor:
        # Copies, because an in-place operation would overwrite the signals.
        by_node = {a: value.clone() for a, value in zip(operands, values, strict=True)}
        unknown = torch.zeros_like(values[0])  # a placeholder: results are then not used

        def known(a: fx.Node) -> Any:
            number = _number(call, a)
            return by_node.get(a, unknown if number is None else number)

        args, kwargs = fx.map_arg(node.args, known), fx.map_arg(node.kwargs, known)
        if module is not None:
            return module(*args, **kwargs)  # type: ignore[no-any-return]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)  # type: ignore[no-any-return]
        return node.target(*args, **kwargs)  # type: ignore[operator, no-any-return]

    return function

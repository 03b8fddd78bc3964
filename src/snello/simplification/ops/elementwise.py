"""Operations that work element by element: activations, arithmetic, dropout."""

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
    """A bare parameter or buffer with one entry per channel, which only one operation reads.

    Attributes:
        name: qualified.
        axis: of the channels.
        signal: constant where a channel's entries are one number.
    """

    name: str
    axis: int
    signal: Signal


@dataclass(frozen=True, eq=False)
class Elementwise(Operation):
    """A function of tensors element by element, with broadcasting.

    Attributes:
        function: maps one constant per operand and parameter, float64 of shape (C,), to the
            output's.
        unknown: whether it also reads something that is not known per channel (another tensor, a
            number).
        product: whether it multiplies, so that one zero makes a zero.
        parameters: bare parameters among the operands: they can be cut to any channels.
        shared: number of the operands, the last ones, that have one channel which meets all of the
            others'.
        unmade: boolean, shape (C,): channels that are not computed, because their reader takes them
            from the operands; None if all are.
    """

    function: Callable[[Sequence[Tensor]], Tensor]
    unknown: bool
    product: bool
    parameters: tuple[Parameter, ...] = ()
    shared: int = 0
    unmade: Tensor | None = None

    @property
    def own(self) -> int:
        """Number of operands that are read channel by channel."""
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
        # What is multiplied by zero is not read.
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
        # What all channels meet must be there as long as any of them is.
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
"""Functional dropout -> the module that does the same."""
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
    """Choices by a mask, whose values are not known: no constant stays one."""
    found = operands_of(call)
    return (
        None if found is None else _of(call, replace(found, unknown=True), lambda values: values[0])
    )


def _of(call: Call, found: Operands, function: Callable[[Sequence[Tensor]], Tensor]) -> Elementwise:
    """The operation of a call on its operands, sorted by their part in it."""
    axes = (*found.own_axes, *(call.axes[a] for a in found.shared))
    return Elementwise(
        call.node, (*found.operands, *found.shared), axes, found.axis, function, found.unknown,
        call.node.target in _PRODUCTS, tuple(parameter for _, parameter in found.parameters),
        len(found.shared),
    )  # fmt: skip


@rule_for(torch.max, torch.min)
def extremum(call: Call) -> Operation | None:
    """``torch.max(a, b)``; with one tensor it is a reduction."""
    binary = len(call.node.args) > 1 and isinstance(call.node.args[1], fx.Node)
    return elementwise(call) if binary else None


@rule_for(*_IDENTITY_MODULES, *DROPOUTS, torch.clone, "contiguous", "clone", "detach")
def identity(call: Call) -> Operation | None:
    """Dropout in all its spellings, and copies: in evaluation mode nothing happens."""
    found = operands_of(call)
    if found is None:
        return None
    return PerChannel(call.node, tuple(found.operands), found.own_axes, found.axis, pointwise=True)


@dataclass(frozen=True)
class Operands:
    """Tensors that an elementwise operation reads, by their part in it.

    Attributes:
        axis: of the output's channels.
        operands: read channel by channel.
        own_axes: of their channels.
        parameters: bare parameters, with their nodes.
        shared: those whose one channel all others meet.
        unknown: whether anything is read whose value is not known.
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
    """Sort the tensors of a call; None if no channels are known, or if they meet those of another
    axis.
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
    """The axis of the output's channels: that of the operands which have as many."""
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
    """Return a parameter or buffer that nothing but this call reads, as it is or in a view.

    Args:
        call: of the operation.
        node: an operand of it.
        axis: of the channels in the operand.
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
    """A vector of which a node is a view, with its entries on an axis: ``weight.view(1, -1, 1)``.

    The size of that axis must be left to torch, so that the view takes fewer entries, too.
    """
    source = node.args[0] if node.args else None
    if node.target not in ("view", "reshape") or not isinstance(source, fx.Node):
        return None, 0
    written = one_by_one(node.args[1:])
    alone = source.op == "get_attr" and len(sizes(source)) == 1
    return (source if alone and written[axis : axis + 1] == (-1,) else None), 0


def _evaluation(call: Call, operands: Sequence[fx.Node]) -> Callable[[Sequence[Tensor]], Tensor]:
    """The operation on one float64 value per channel in place of each tensor."""
    node, module = call.node, call.module

    def function(values: Sequence[Tensor]) -> Tensor:
        # In-place operations must not reach the signals.
        by_node = {a: value.clone() for a, value in zip(operands, values, strict=True)}
        unknown = torch.zeros_like(values[0])  # what is computed from it is not used

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

"""Operations that work element by element: activations, arithmetic, dropout."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import known_shape, shape_of

from ..ir.channels import Layout, Signal, same_order
from ..ir.edits import IndexedSum
from ..ir.plan import Slice
from .call import Call, sizes
from .channelwise import PerChannel
from .operation import Edit, Lowered, Operation, Placement, Wanted, join
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
        function: maps one constant per operand and parameter, float64 of shape (C,), to the output's.
        unknown: whether it also reads something that is not known per channel (another tensor, a number).
        product: whether it multiplies, so that one zero makes a zero.
        parameters: bare parameters among the operands: they can be cut to any channels.
        shared: number of the operands, the last ones, that have one channel which meets all of the others'.
        unmade: boolean, shape (C,): channels that are not computed, because their reader takes them from
            the operands; None if all are.
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
        others = (
            sum(zero[:i] + zero[i + 1 :], torch.zeros_like(useful)) for i in range(self.own)
        )
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


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """The sum of two tensors of one shape: what one of them lacks is not put in place, but added to."""

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        return self.operands

    def propagate(self, *signals: Signal) -> Signal:
        a, b = signals
        return Signal.of(a.constant & b.constant, a.value + b.value)

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful, useful]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        return list(received), join(self, useful, received)[1]

    @staticmethod
    def base(received: Sequence[Layout]) -> int:
        """Return the position of the operand that the other one is added to: the wider one."""
        return int(len(received[1].order) > len(received[0].order))

    def lower(self, placement: Placement) -> Lowered:
        a, b = placement.received
        produced = placement.produced
        constants = (a.absent + b.absent)[produced.order]
        if produced.is_empty or (same_order(a, b) and not bool((constants != 0).any())):
            return Lowered()
        assert self.axis is not None
        base = self.base((a, b))
        in_place = self.operands[base] in placement.overwritable
        return Lowered(edits=(indexed_sum(self.node, self.axis, base, (a, b), produced, in_place),))


def indexed_sum(
    node: fx.Node,
    axis: int,
    base: int,
    layouts: tuple[Layout, Layout],
    produced: Layout,
    in_place: bool,
) -> Edit:
    """Make the edit that adds two operands with different channels; ``base`` is added to."""
    receiver, other = layouts[base], layouts[1 - base]
    # What is absent from both is not in the result; what is present in one has no constant there.
    constant = (receiver.absent + other.absent)[produced.order]
    where = (constant != 0).nonzero().flatten()
    index = produced.positions()[other.order]
    record = IndexedSum(
        name="", node=node.name, base=base, axis=axis,
        grown=len(produced.order) - len(receiver.order), width=len(produced.order),
        index=tuple(index.tolist()) if len(index) else None,
        constants=tuple(where.tolist()), in_place=in_place,
    )  # fmt: skip
    return Edit(record, {"constant": constant[where]} if len(where) else {})


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
    torch.maximum, torch.minimum, torch.true_divide,
)  # fmt: skip
_METHODS = (
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "abs", "sqrt", "rsqrt", "square", "log",
    "neg", "clamp", "clamp_", "clamp_min", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
    "hardtanh", "maximum", "minimum",
)  # fmt: skip
_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


@rule_for(*_MODULES, *_FUNCTIONS, *_METHODS)
def elementwise(call: Call) -> Operation | None:
    """Activations and arithmetic with broadcasting."""
    found = _operands(call)
    if found is None:
        return None
    if _is_sum(call.node) and found.alone and all(sizes(a) == call.shape for a in found.operands):
        first, second = call.node.args[:2]
        return Add(call.node, (first, second), (found.axis, found.axis), found.axis)  # type: ignore[arg-type]
    function = _evaluation(call, [*found.operands, *(node for node, _ in found.parameters)])
    return Elementwise(
        call.node, (*found.operands, *found.shared),
        (*found.own_axes, *(call.axes[a] for a in found.shared)), found.axis, function, found.unknown,
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
    found = _operands(call)
    if found is None:
        return None
    return PerChannel(call.node, tuple(found.operands), found.own_axes, found.axis, pointwise=True)


@dataclass(frozen=True)
class _Operands:
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
        return not self.parameters and not self.unknown


def _operands(call: Call) -> _Operands | None:
    """Sort the tensors of a call; None if no channels are known, or if they meet those of another axis."""
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
        elif (parameter := _parameter(call, a, own_axis)) is not None:
            parameters.append((a, parameter))
        else:
            operands.append(a)
    own_axes = tuple(axis - len(shape) + len(sizes(a)) for a in operands)
    return _Operands(axis, operands, own_axes, parameters, shared, unknown)


def _channel_axis(call: Call, tensors: Sequence[fx.Node], shape: tuple[int, ...]) -> int | None:
    """The axis of the output's channels: that of the operands which have as many."""
    for a in tensors:
        if a in call.axes:
            own = sizes(a)
            axis = call.axes[a] + len(shape) - len(own)
            if own[call.axes[a]] == shape[axis]:
                return axis
    return None


def _is_sum(node: fx.Node) -> bool:
    both = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return node.target in _ADDITIONS and both and not node.kwargs


def _number(call: Call, node: fx.Node) -> Tensor | None:
    """The value of a parameter or buffer of one element, in float64; None for anything else."""
    if node.op != "get_attr":
        return None
    owner, _, attribute = str(node.target).rpartition(".")
    tensor = getattr(call.graph.module.get_submodule(owner), attribute)
    return tensor.detach().cpu().double().reshape(1) if tensor.numel() == 1 else None


def _parameter(call: Call, node: fx.Node, axis: int) -> Parameter | None:
    """A bare parameter or buffer that nothing else reads."""
    if node.op != "get_attr" or len(node.users) != 1:
        return None
    name = str(node.target)
    owner, _, attribute = name.rpartition(".")
    holder = call.graph.module.get_submodule(owner)
    same_name = [n for n in call.graph.nodes if n.op == "get_attr" and str(n.target) == name]
    if (
        len(same_name) > 1
        or call.graph.is_tied(name)
        or attribute not in {**holder._parameters, **holder._buffers}
    ):
        return None
    tensor = getattr(holder, attribute).detach().cpu().double().movedim(axis, 0).flatten(1)
    uniform = (tensor == tensor[:, :1]).all(1)
    return Parameter(name, axis, Signal.of(uniform, tensor[:, 0]))


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

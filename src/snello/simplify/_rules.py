"""What is known about each operation: how constants pass through it, and what it reads.

A *signal* says, for every channel of an edge at full width, whether its value is the same constant at every
position and for every input. A rule answers three questions about one node: which signal comes out, given
those that go in; which input channels are read, given the output channels that are; which output channels
physically exist, given the input channels that do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.graph import Graph, shape_of
from snello.neurons import is_batchnorm


@dataclass(frozen=True)
class Signal:
    """What is known of an edge's channels.

    Attributes:
        constant: boolean, shape (C,): the channel is one known value.
        value: float64, shape (C,): that value; 0 where the channel is not constant.
    """

    constant: Tensor
    value: Tensor

    @staticmethod
    def live(channels: int) -> Signal:
        """A signal of which nothing is known."""
        return Signal(torch.zeros(channels, dtype=torch.bool), torch.zeros(channels, dtype=torch.float64))

    @staticmethod
    def of(constant: Tensor, value: Tensor) -> Signal:
        """Constants whose value is not finite are not used: they would poison the folding."""
        known = constant & value.isfinite()
        return Signal(known, torch.where(known, value, torch.zeros_like(value)))


class Rule:
    """An operation on channels. Subclasses say how signals pass and what is read."""

    def forward(self, *signals: Signal) -> Signal:
        """The signal of the output."""
        raise NotImplementedError

    def reads(self, useful: Tensor) -> Tensor:
        """Which channels of each input are read, given the useful channels of the output."""
        raise NotImplementedError

    def presence(self, *present: Tensor) -> Tensor:
        """Which channels of the output physically exist, given those of the inputs that do."""
        return present[0]


@dataclass(frozen=True)
class Layer(Rule):
    """Linear or convolution: the only operations with neurons of their own."""

    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """In float64, shape (out, in, kernel positions)."""
        weight: Tensor = self.module.weight.detach().double()  # type: ignore[union-attr, operator, assignment]
        return weight.reshape(weight.shape[0], weight.shape[1], -1)

    @property
    def bias(self) -> Tensor:
        """In float64, zeros where the layer has none."""
        bias = self.module.bias
        return bias.detach().double() if isinstance(bias, Tensor) else self.weight.new_zeros(len(self.weight))

    @property
    def pads_with_zeros(self) -> bool:
        """Whether border positions see zeros in place of a constant input."""
        if not isinstance(self.module, _ConvNd) or self.module.padding_mode != "zeros":
            return False
        padding = self.module.padding
        return padding != "valid" if isinstance(padding, str) else any(padding)

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        # Under zero padding a non-zero constant is another value at the border: it is no constant for us.
        position_dependent = (
            (signal.value != 0) if self.pads_with_zeros else torch.zeros_like(signal.constant)
        )
        varying = ~signal.constant | position_dependent
        constant = (self.weight[:, varying] == 0).flatten(1).all(1)
        value = self.bias + self.weight.sum(2) @ signal.value.to(self.weight.device)
        return Signal.of(constant.cpu(), value.cpu())

    def reads(self, useful: Tensor) -> Tensor:
        return (self.weight[useful.to(self.weight.device)] != 0).any(2).any(0).cpu()


@dataclass(frozen=True)
class BatchNorm(Rule):
    """Evaluation-mode BatchNorm: one affine map per channel; a zero scale makes its output constant."""

    module: nn.Module

    def _affine(self) -> tuple[Tensor, Tensor]:
        m = self.module
        mean, var = m.running_mean.detach().double(), m.running_var.detach().double()  # type: ignore[union-attr, operator]
        weight, bias = m.weight, m.bias
        scale = weight.detach().double() if isinstance(weight, Tensor) else torch.ones_like(mean)
        shift = bias.detach().double() if isinstance(bias, Tensor) else torch.zeros_like(mean)
        scale = scale / torch.sqrt(var + m.eps)  # type: ignore[operator, arg-type]
        return scale.cpu(), (shift - mean * scale).cpu()

    def forward(self, *signals: Signal) -> Signal:
        (signal,), (scale, shift) = signals, self._affine()
        return Signal.of(signal.constant | (scale == 0), signal.value * scale + shift)

    def reads(self, useful: Tensor) -> Tensor:
        return useful & (self._affine()[0] != 0)


@dataclass(frozen=True)
class Pointwise(Rule):
    """The same function of every element (activations), or of a neighbourhood of equal elements (pooling)."""

    function: Callable[[Tensor], Tensor] | None = None

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        if self.function is None:
            return signal
        return Signal.of(signal.constant, self.function(signal.value))

    def reads(self, useful: Tensor) -> Tensor:
        return useful


@dataclass(frozen=True)
class Flatten(Rule):
    """(N, C, *positions) to (N, C * positions): each channel becomes a run of features."""

    positions: int

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        repeat = self.positions
        return Signal(signal.constant.repeat_interleave(repeat), signal.value.repeat_interleave(repeat))

    def reads(self, useful: Tensor) -> Tensor:
        return useful.reshape(-1, self.positions).any(1)

    def presence(self, *present: Tensor) -> Tensor:
        return present[0].repeat_interleave(self.positions)


@dataclass(frozen=True)
class PadChannels(Rule):
    """Zero channels before and after: they never need to exist."""

    before: int
    after: int

    def forward(self, *signals: Signal) -> Signal:
        (signal,) = signals
        pad = (self.before, self.after)
        return Signal(F.pad(signal.constant, pad, value=True), F.pad(signal.value, pad))

    def reads(self, useful: Tensor) -> Tensor:
        return useful[self.before : len(useful) - self.after]

    def presence(self, *present: Tensor) -> Tensor:
        return F.pad(present[0], (self.before, self.after))


@dataclass(frozen=True)
class Add(Rule):
    """The sum of two tensors of the same shape."""

    def forward(self, *signals: Signal) -> Signal:
        a, b = signals
        return Signal.of(a.constant & b.constant, a.value + b.value)

    def reads(self, useful: Tensor) -> Tensor:
        return useful

    def presence(self, *present: Tensor) -> Tensor:
        return present[0] | present[1]


_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign,
)  # fmt: skip
_ELEMENTWISE_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, torch.sigmoid, torch.tanh,
    F.sigmoid, F.tanh, F.hardswish, F.hardsigmoid, F.softplus,
}  # fmt: skip
_ELEMENTWISE_METHODS = {"relu", "relu_", "sigmoid", "tanh"}
_TRANSPARENT_MODULES = (
    nn.Identity, nn.modules.dropout._DropoutNd, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_TRANSPARENT_FUNCTIONS = {
    F.dropout, F.dropout2d, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
}  # fmt: skip
_AVERAGE_POOLS = {F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
_ADDITIONS = {operator.add, operator.iadd, torch.add}


def rule_for(graph: Graph, node: fx.Node) -> Rule | None:
    """The rule for a node, or None: then its inputs are given at full width and its output is taken as live."""
    module, shape = graph.layer(node), shape_of(node)
    if shape is None or len(shape) < 2 or any(shape_of(a) is None for a in node.all_input_nodes):
        return None
    if module is not None:
        # A reused activation is no matter; a layer called twice cannot be narrowed two ways.
        has_state = next(module.parameters(), None) is not None
        return None if has_state and graph.is_shared(str(node.target)) else _module_rule(node, module)
    if node.op == "call_function":
        return _function_rule(node)
    if node.op == "call_method":
        return _method_rule(node)
    return None


def _module_rule(node: fx.Node, module: nn.Module) -> Rule | None:
    if isinstance(module, nn.Linear):
        # With more than two dimensions the channels are on the last axis, not on axis 1.
        return Layer(module) if len(shape_of(node) or ()) == 2 else None
    if isinstance(module, _ConvNd):
        plain = module.groups == 1 and not isinstance(module, _ConvTransposeNd) and _is_batched(node, module)
        return Layer(module) if plain else None
    if is_batchnorm(module):
        return BatchNorm(module) if module.running_mean is not None else None
    if isinstance(module, _ELEMENTWISE_MODULES):
        return Pointwise(_out_of_place(module))
    if isinstance(module, _TRANSPARENT_MODULES):
        return Pointwise() if _one_tensor(node) else None
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
        # A divisor of its own makes the pool of a constant another constant.
        plain = not any(padding) and getattr(module, "divisor_override", None) is None
        return Pointwise() if plain else None
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return _flatten_rule(node)
    return None


def _is_batched(node: fx.Node, module: _ConvNd) -> bool:
    return len(shape_of(node) or ()) == module.weight.dim()


def _out_of_place(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def function(value: Tensor) -> Tensor:
        return module(value.clone())  # type: ignore[no-any-return]

    return function


def _function_rule(node: fx.Node) -> Rule | None:
    target = node.target
    if target in _ADDITIONS:
        return _add_rule(node)
    if not _one_tensor(node):
        return None
    if target in _ELEMENTWISE_FUNCTIONS:
        function, extra, options = target, node.args[1:], {**node.kwargs}
        options.pop("inplace", None)
        options.pop("input", None)
        return Pointwise(lambda value: function(value, *extra, **options))  # type: ignore[operator]
    if target in _TRANSPARENT_FUNCTIONS:
        return Pointwise()
    if target in _AVERAGE_POOLS:
        special = node.kwargs.get("padding") or node.kwargs.get("divisor_override")
        return Pointwise() if len(node.args) <= 3 and not special else None
    if target is operator.getitem:
        return Pointwise() if _is_spatial_slice(node.args[1]) else None
    if target is torch.flatten:
        return _flatten_rule(node) if _flattens_all(node) else None
    if target is F.pad:
        return _pad_rule(node)
    if target is torch.mean:
        return _mean_rule(node)
    return None


def _method_rule(node: fx.Node) -> Rule | None:
    if not _one_tensor(node):
        return None
    if node.target in _ELEMENTWISE_METHODS:
        return Pointwise(lambda value: getattr(value.clone(), str(node.target))())
    if node.target == "contiguous":
        return Pointwise()
    if node.target == "flatten":
        return _flatten_rule(node) if _flattens_all(node) else None
    if node.target == "mean":
        return _mean_rule(node)
    return None


def _one_tensor(node: fx.Node) -> bool:
    """One input, and it is the first argument: what follows are options."""
    return len(node.all_input_nodes) == 1 and bool(node.args) and node.args[0] is node.all_input_nodes[0]


def _add_rule(node: fx.Node) -> Rule | None:
    operands = node.args[:2]
    if len(operands) < 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in operands):
        return None
    a, b = (shape_of(x) for x in operands)  # type: ignore[arg-type]
    return Add() if a == b == shape_of(node) else None


def _flattens_all(node: fx.Node) -> bool:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return bool(start == 1 and end == -1)


def _flatten_rule(node: fx.Node) -> Rule | None:
    shape = shape_of(node.all_input_nodes[0])
    return Flatten(math.prod(shape[2:])) if shape is not None and len(shape) >= 2 else None


def _is_spatial_slice(index: object) -> bool:
    """``x[:, :, ...]``: batch and channels whole, only slices behind them."""
    everything = slice(None, None, None)
    return (
        isinstance(index, tuple)
        and len(index) >= 2
        and index[0] == index[1] == everything
        and all(isinstance(part, slice) for part in index)
        and not any(isinstance(end, fx.Node) for part in index for end in (part.start, part.stop, part.step))
    )


def _pad_rule(node: fx.Node) -> Rule | None:
    pad = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value", None)
    dims = len(shape_of(node) or ())
    if not isinstance(pad, (tuple, list)) or len(pad) != 2 * (dims - 1) or mode != "constant" or value:
        return None
    if not all(isinstance(p, int) for p in pad) or any(pad[:-2]) or min(pad[-2:]) < 0:  # type: ignore[type-var]
        return None
    return PadChannels(int(pad[-2]), int(pad[-1]))  # type: ignore[arg-type]


def _mean_rule(node: fx.Node) -> Rule | None:
    """A mean over spatial positions: of a constant it is the constant."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(shape_of(node.all_input_nodes[0]) or ())
    over = [dims] if isinstance(dims, int) else dims
    if not isinstance(over, (tuple, list)) or not all(isinstance(d, int) for d in over):
        return None
    return Pointwise() if all(d % rank >= 2 for d in over) else None  # type: ignore[operator]

"""Layers with neurons: Linear, convolutions of any kind, Embedding."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.graph import TargetTable, register_leaf
from snello.neurons import neuron_axis, outputs_first, padding_of
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import Geometry
from snello.simplification.ir.folds import BorderFold, Fold, GateFold, TableFold
from snello.simplification.ir.plan import LayerPlan, Slice

from .call import Call, sizes
from .elementwise import bare_parameter
from .operation import FoldedIn, Lowered, Operation, Placement, Wanted
from .registry import register_rule, rule_for

_POINTWISE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


_inputs_first: TargetTable[None] = TargetTable()


def register_linear(target: type[nn.Module] | str) -> None:
    """Register a linear layer of another library whose weight has shape (inputs, outputs).

    Args:
        target: its class, or the dotted name of the class.
    """
    _inputs_first.add(target, None)
    register_leaf(target)
    register_rule(target, linear)


def has_inputs_first(module: nn.Module | None) -> bool:
    """Return True for a layer whose weight has its inputs on axis 0 and its neurons on axis 1."""
    if module is None:
        return False
    return isinstance(module, _ConvTransposeNd) or bool(_inputs_first.find_module(module))


@dataclass(frozen=True, eq=False)
class Producer(Operation):
    """An operation that decides which channels exist.

    Attributes:
        name: qualified name of the module.
    """

    name: str

    produces: ClassVar[bool] = True

    def produced(self, signal: Signal, useful: Tensor, forced: Tensor | None) -> Layout:
        """Return the layout of the output.

        Args:
            signal: constants of the output.
            useful: channels that are read, boolean, shape (C,).
            forced: indices of the channels to keep, in order; None for the useful ones that are not
                constant.
        """
        order = forced if forced is not None else (useful & ~signal.constant).nonzero().flatten()
        return Layout(order, signal.value.index_fill(0, order, 0))


@dataclass(frozen=True, eq=False)
class Weighted(Producer):
    """Linear, convolutions and transposed convolutions, grouped or not.

    A convolution of a lean model may have a gate as its second operand, which is read unchanged.

    Attributes:
        module: the layer.
    """

    module: nn.Module

    @cached_property
    def groups(self) -> int:
        """Number of groups; 1 for Linear."""
        return self.module.groups if isinstance(self.module, _ConvNd) else 1

    @cached_property
    def taps(self) -> Tensor:
        """The weight on the CPU: shape (groups, out per group, in per group, kernel positions)."""
        weight: Tensor = self.module.weight.detach().cpu()  # type: ignore[union-attr, operator, assignment]
        if isinstance(self.module, _ConvTransposeNd):
            weight = outputs_first(weight, self.groups)
        elif has_inputs_first(self.module):
            weight = weight.T
        return weight.reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)

    @cached_property
    def connected(self) -> Tensor:
        """True where a weight from input to output is not zero.

        Shape (groups, out per group, in per group).
        """
        return (self.taps != 0).any(3)

    @property
    def bias(self) -> Tensor:
        """The bias in float64, zeros where the layer has none: shape (out,)."""
        bias = self.module.bias
        if isinstance(bias, Tensor):
            return bias.detach().cpu().double()
        return torch.zeros(self.taps.shape[0] * self.taps.shape[1], dtype=torch.float64)

    @cached_property
    def folded(self) -> dict[str, Tensor]:
        """Buffers of folds of an earlier simplification, by name: float64, shape (out, *)."""
        axis = neuron_axis(self.module) or 0
        buffers = {name: getattr(self.module, name, None) for name in Fold.family}
        return {
            name: buffer.detach().cpu().double().movedim(axis, 0).flatten(1)
            for name, buffer in buffers.items()
            if isinstance(buffer, Tensor)
        }

    @property
    def is_pointwise(self) -> bool:
        """True for a 1x1 convolution with one group, stride 1 and no padding."""
        conv = self.module
        if type(conv) not in _POINTWISE or not isinstance(conv, _ConvNd) or conv.groups > 1:
            return False
        return set(conv.kernel_size) == {1} == set(conv.stride) and not any(
            conv._reversed_padding_repeated_twice
        )

    @property
    def depends_on_position(self) -> bool:
        """True if the output for a constant nonzero input may differ from position to position.

        Zero padding cuts off part of the kernel at the border; a transposed convolution uses a
        different subset of its kernel at different positions.
        """
        return isinstance(self.module, _ConvTransposeNd) or pads_with_zeros(self.module)

    @property
    def geometry(self) -> Geometry:
        """Geometry of the convolution."""
        conv = self.module
        assert isinstance(conv, _ConvNd)
        before, after = padding_of(conv)
        return Geometry(
            tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation), before, after
        )

    def propagate(self, *signals: Signal) -> Signal:
        signal = signals[0]
        groups, _, fan_in, _ = self.taps.shape
        varying = ~signal.constant
        if self.depends_on_position:
            varying = varying | (signal.value != 0)
        constant = ~(self.connected & varying.reshape(groups, 1, fan_in)).any(2).flatten()
        for folded in self.folded.values():
            constant &= (folded == 0).all(1)
        added = self.contribution(signal.value.masked_fill(varying, 0)).sum(1)
        return Signal.of(constant, self.bias + added)

    def contribution(self, value: Tensor) -> Tensor:
        """Return the sum of weight times constant input for each kernel position.

        Args:
            value: constant of each input channel, 0 for the others: float64, shape (in,).

        Returns:
            Float64, shape (out, kernel positions).
        """
        groups, _, fan_in, _ = self.taps.shape
        value = value.reshape(groups, fan_in)
        if groups == 1:  # only nonzero columns are converted to float64, to save memory
            columns = value[0].nonzero().flatten()
            taps = self.taps[:, :, columns].double()
            return torch.einsum("goik,gi->gok", taps, value[:, columns]).flatten(0, 1)
        return torch.einsum("goik,gi->gok", self.taps.double(), value).flatten(0, 1)

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        # A constant neuron is not computed and needs no input.
        groups, fan_out = self.taps.shape[:2]
        needed = (useful & ~signal.constant).reshape(groups, fan_out, 1)
        gates = [needed.any().expand(len(gate.constant)) for gate in signals[1:]]
        return [(self.connected & needed).any(1).flatten(), *gates]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        layout, *gates = received
        produced = self.produced(signal, useful, forced)
        if self.groups > 1:
            return self._arrange_groups(layout, produced)
        if layout.is_empty and not produced.is_empty:
            layout = layout.arranged(
                torch.zeros(1, dtype=torch.long)
            )  # a layer needs at least one input
        # The columns that read a gate are already stored for all of its channels, in order.
        whole = [gate if produced.is_empty else Layout.whole(gate.width) for gate in gates]
        return [layout, *whole], produced

    def _arrange_groups(self, layout: Layout, produced: Layout) -> Wanted:
        """Remove whole groups, and sort the inputs and outputs of the others by group."""
        groups, fan_out, fan_in, _ = self.taps.shape
        outputs = produced.present.reshape(groups, fan_out)
        present = layout.present.reshape(groups, fan_in)
        unfed = outputs.any(1) & ~present.any(1)
        needed = torch.zeros_like(present)
        # If all inputs of a kept group are constant, its output depends on the position (else it
        # would be constant) and is computed from the inputs that are not zero.
        needed[unfed] = layout.absent.reshape(groups, fan_in)[unfed] != 0
        needed[unfed & ~needed.any(1), 0] = True
        layout = layout.extended(needed.flatten())
        group = layout.order // fan_in
        inputs = layout.order[outputs.any(1)[group]]
        if not _even(inputs // fan_in, produced.order // fan_out):
            return self._uneven(layout, produced)
        # Groups in the order of their first inputs, which often avoids an index operation.
        first = torch.full((groups,), len(group)).scatter_reduce(
            0, group, torch.arange(len(group)), "amin"
        )
        inputs = inputs[torch.argsort(first[inputs // fan_in], stable=True)]
        by_group = torch.argsort(first[produced.order // fan_out], stable=True)
        return [layout.arranged(inputs)], Layout(produced.order[by_group], produced.absent)

    def _uneven(self, layout: Layout, produced: Layout) -> Wanted:
        """Arrange groups of different sizes.

        A ragged convolution reads the present inputs in any order. A transposed convolution has no
        ragged form: its kept groups stay whole.
        """
        if not isinstance(self.module, _ConvTransposeNd):
            return [layout], produced
        groups, fan_out, fan_in, _ = self.taps.shape
        alive = torch.zeros(groups, dtype=torch.bool).index_fill(0, produced.order // fan_out, True)
        inputs, outputs = (
            alive.repeat_interleave(n).nonzero().flatten() for n in (fan_in, fan_out)
        )
        return [layout.arranged(inputs)], Layout(outputs, produced.absent.index_fill(0, outputs, 0))

    def lower(self, placement: Placement) -> Lowered:
        layout, produced = placement.wanted[0], placement.produced
        constants = self.contribution(layout.absent)[produced.order]
        border = self.depends_on_position and bool((constants != 0).any())
        if "border" in self.folded:
            border, constants = True, constants + self.folded["border"][produced.order]
        bias = self.bias[produced.order]
        if not border:
            bias = bias + constants.sum(1)
        has_bias = isinstance(self.module.bias, Tensor) or bool((bias != 0).any())
        own: tuple[Fold, ...] = (BorderFold(),) if border else ()
        folded = int((layout.absent != 0).sum()) + sum(fold.constants for fold in placement.folds)
        plan = LayerPlan(
            outputs=produced.width, inputs=layout.width,
            kept_outputs=tuple(produced.order.tolist()), kept_inputs=tuple(layout.order.tolist()),
            groups=self.groups, bias=has_bias, folded=folded,
            folds=(*own, *self._held(placement.folds)),
        )  # fmt: skip
        values = {fold.record.tag: fold.value for fold in placement.folds}
        if has_bias:
            values["bias"] = bias
        if border:
            assert isinstance(self.module, _ConvNd)
            transposed = isinstance(self.module, _ConvTransposeNd)
            one = (1, len(bias)) if transposed else (len(bias), 1)
            values["border"] = constants.reshape(*one, *self.module.kernel_size)
        return Lowered(
            layers={self.name: plan},
            values={f"{self.name}.{name}": value for name, value in values.items()},
            edits=self.adapters(placement),
        )

    def _held(self, folds: Sequence[FoldedIn]) -> list[Fold]:
        """Folds other than the border kernel: those of an earlier simplification and new ones."""
        held: dict[str, Fold] = {}
        if "table" in self.folded:
            held["table"] = TableFold(self.folded["table"].shape[1])
        if "gated" in self.folded:
            held["gated"] = GateFold(self.folded["gated"].shape[1])
        return list((held | {fold.record.tag: fold.record for fold in folds}).values())


@rule_for(nn.Linear)
def linear(call: Call) -> Operation | None:
    """A linear layer, with channels on the last axis."""
    return None if call.shape is None else _weighted(call, len(call.shape) - 1)


@rule_for(_ConvNd)
def convolution(call: Call) -> Operation | None:
    """A convolution of batched input, without the argument `output_size`."""
    assert call.module is not None
    weight: Tensor = call.module.weight  # type: ignore[assignment]
    if call.shape is None or len(call.shape) != weight.dim() or len(call.node.args) > 1:
        return None
    return _weighted(call, 1)


def _weighted(call: Call, axis: int) -> Operation | None:
    operand = call.operand(axis)
    if operand is None:
        return None
    assert call.module is not None
    gate = call.node.kwargs.get("gate")
    operands = (operand, gate) if isinstance(gate, fx.Node) else (operand,)
    return Weighted(call.node, operands, (axis,) * len(operands), axis, call.name, call.module)


class Source(Producer):
    """A producer that reads no channels."""

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return []

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        return [], self.produced(signal, useful, forced)


@dataclass(frozen=True, eq=False)
class TableColumns(Source):
    """Rows of a table, chosen by an index: the neurons are its columns.

    Attributes:
        entries: of each column; constant where they are all equal.
    """

    entries: Signal

    def propagate(self, *signals: Signal) -> Signal:
        return self.entries

    def lower(self, placement: Placement) -> Lowered:
        produced = placement.produced
        if produced.is_natural:
            return Lowered()
        kept = tuple(produced.order.tolist())
        return Lowered(parameters={self.name: (Slice(1, kept),)})


@rule_for(nn.Embedding)
def embedding(call: Call) -> Operation | None:
    """Embeddings whose table is read as it is."""
    module = call.module
    assert isinstance(module, nn.Embedding)
    if call.shape is None or module.max_norm is not None or module.sparse:
        return None
    table = module.weight.detach().cpu().double()
    entries = Signal.of((table == table[:1]).all(0), table[0])
    return TableColumns(call.node, (), (), len(call.shape) - 1, f"{call.name}.weight", entries)


@rule_for(operator.getitem)
def table_columns(call: Call) -> Operation | None:
    """`table[index]` with a bare parameter of two axes, such as position biases of heads."""
    source, index = call.node.args[:2]
    if not isinstance(source, fx.Node) or not isinstance(index, fx.Node) or call.shape is None:
        return None
    parameter = bare_parameter(call, source, 1) if len(sizes(source)) == 2 else None
    if parameter is None or len(call.shape) != len(sizes(index)) + 1:
        return None
    # Not even equal entries count as a constant: what they are added to would need it in place.
    entries = Signal.live(call.shape[-1])
    return TableColumns(call.node, (), (), len(call.shape) - 1, parameter.name, entries)


def _even(*group_of: Tensor) -> bool:
    """True if, in each tensor of group numbers, all groups that occur have the same count."""
    return all(len(set(torch.unique(g, return_counts=True)[1].tolist())) <= 1 for g in group_of)


def pads_with_zeros(module: nn.Module) -> bool:
    """True for a convolution that pads its input with zeros."""
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return False
    return module.padding != "valid" if isinstance(module.padding, str) else any(module.padding)

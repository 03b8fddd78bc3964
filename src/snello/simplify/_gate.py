"""Squeeze-and-excitation of what is dead: a gate times a constant, up to a pointwise convolution.

A gate is one number for each example and channel. Where the channel that it multiplies is a constant, the product is
the same at every position, so that nobody needs the map: the pointwise convolution that reads it takes the gate
itself, with its columns times the constants, and adds what that gives everywhere.

The channel may depend on the position, too (see :mod:`snello.simplify._position`). It takes few values then, which
are worked out once per resolution: the pointwise convolution takes the gate times each of these, and the layer that
reads the average over the positions is given the average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from snello.graph import Graph, known_shape

from ._draft import Draft
from ._plan import Statics
from ._position import depending, is_step, overhang_of, path_to
from ._relief import Relief
from ._rule import Elementwise, PerChannel, Rule, signal_of
from ._signal import Layout, Signal, same_order
from ._weighted import Affine, Weighted

if TYPE_CHECKING:
    from ._analysis import Analysis

_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@dataclass(frozen=True, eq=False)
class Static:
    """Channels that depend on the position alone, between a convolution that pads and a squeeze-and-excitation.

    Attributes:
        source: the rule of the convolution.
        average: the node that averages over the positions.
        squeeze: the rule of the pointwise convolution that alone reads that.
        activations: names of the modules that follow convolution and norms.
        channels: boolean, shape (C,).
        taps: float64, shape (C, kernel positions + 1): what the constants that the convolution reads add through each
            position of its kernel, and its bias, norms included.
    """

    source: Weighted
    average: fx.Node
    squeeze: Weighted
    activations: tuple[str, ...]
    channels: Tensor
    taps: Tensor


@dataclass(frozen=True, eq=False)
class Gate(Relief):
    """A product of a map and of a gate, and the pointwise convolution that alone reads it.

    Attributes:
        product: the rule of the product.
        gate: the node.
        reader: the rule of the convolution.
        channels: boolean, shape (C,): the channels of which the gate alone depends on the input.
        varying: the same of those that depend on the input by the map, too.
        values: float64, shape (C,): what the gate multiplies in :attr:`channels`, if that is one constant.
        static: those of :attr:`channels` that depend on the position, if there are any.
    """

    product: Elementwise
    gate: fx.Node
    reader: Weighted
    channels: Tensor
    varying: Tensor
    values: Tensor
    static: Static | None

    @property
    def choices(self) -> tuple[Gate, ...]:
        """With the channels that depend on the position, and without."""
        if self.static is None:
            return (self,)
        static = self.channels & self.static.channels
        rest = replace(self, channels=self.channels & ~static, varying=self.varying | static, static=None)
        return (self, rest)

    def saves_bytes(self, neurons: int, channels: int) -> bool:
        # If but a few: neither constants nor norms need be kept.
        return neurons * channels > 0

    def takes(self, read: Tensor) -> Tensor:
        # None if no other would be left: a convolution reads something.
        return read & self.channels & (read & self.varying).any()

    def settle(self, analysis: Analysis, taken: Tensor) -> None:
        static = self.static and replace(self.static, channels=self.static.channels & taken)
        if static is not None and static.channels.any():
            analysis.reliefs[static.squeeze.node] = Squeeze(static)
        else:
            static = None
        analysis.reliefs[self.reader.node] = replace(self, channels=taken, static=static)
        analysis.rules[self.product.node] = replace(self.product, left_out=taken)
        analysis.useful[self.gate].logical_or_(taken)

    def emit(self, draft: Draft, layouts: Mapping[fx.Node, Layout]) -> None:
        produced, given = layouts[self.reader.node], layouts[self.gate]
        static = torch.zeros_like(self.channels) if self.static is None else self.static.channels
        constant = (self.channels & ~static & given.present).nonzero().flatten()
        columns = torch.cat([constant, static.nonzero().flatten()])
        name, plan = self.reader.name, draft.layers[self.reader.name]
        draft.layers[name] = replace(plan, gated=len(columns), folded=plan.folded + len(columns))
        weight = self.reader.taps[0, :, :, 0][produced.order][:, columns].double() * self.values[columns]
        draft.values[f"{name}.gated"] = weight.view(*weight.shape, *self.reader.module.kernel_size)  # type: ignore[misc]
        draft.gate(self.gate, self.reader.node)
        if not same_order(given, wanted := given.arranged(columns)):
            draft.fill(self.gate, self.reader.node, 1, given, wanted)
        if self.static is not None:
            absent = ~layouts[self.static.average].present[self.static.channels]
            self._emit_static(self.static, draft, len(constant), absent)

    def _emit_static(self, static: Static, draft: Draft, constants: int, absent: Tensor) -> None:
        nodes = {"operand": static.source.operands[0].name, "reader": self.reader.node.name}
        record = Statics(
            **vars(overhang_of(static.source.module)) | nodes, average=static.average.name,
            squeeze=static.squeeze.node.name, activations=static.activations, channels=len(absent),
            constants=constants, averaged=tuple(absent.nonzero().flatten().tolist()),
        )  # fmt: skip
        draft.statics(record, static.taps[static.channels])


@dataclass(frozen=True, eq=False)
class Squeeze(Relief):
    """The layer that reads the average of the channels of a :class:`Static`: it is given that of those not made."""

    static: Static

    def saves_bytes(self, neurons: int, channels: int) -> bool:
        return True  # it goes with the gate, which has been found worth it

    def takes(self, read: Tensor) -> Tensor:
        return read & self.static.channels

    def received(self, layout: Layout) -> Layout:
        # The averages are appended.
        known = self.static.channels
        return Layout(layout.order, layout.fill.masked_fill(known, 0)).extended(known)


def gates(
    graph: Graph, rules: Mapping[fx.Node, Rule], signals: Mapping[fx.Node, Signal]
) -> dict[fx.Node, Gate]:
    """Pointwise convolution -> the product that it reads, where a gate multiplies what is no map."""
    readers = (rule for rule in rules.values() if isinstance(rule, Weighted) and rule.is_pointwise)
    found = (_gate(reader, graph, rules, signals) for reader in readers)
    return {gate.reader.node: gate for gate in found if gate is not None}


def _gate(
    reader: Weighted, graph: Graph, rules: Mapping[fx.Node, Rule], signals: Mapping[fx.Node, Signal]
) -> Gate | None:
    (product,) = reader.operands
    rule = rules.get(product)
    # Right behind the product: nothing can overwrite the gate before the reader sees it.
    if not isinstance(rule, Elementwise) or not _is_gated(rule) or product.next is not reader.node:
        return None
    gate, gated = sorted(rule.operands, key=_positions)
    if _positions(gate) > 1 or _positions(gated) == 1 or not {gate, gated} <= signals.keys():
        return None
    needed, constant = ~signals[product].constant, signals[gated].constant
    static = _static(gate, gated, graph, rules, signals)
    known = constant if static is None else constant | static.channels
    channels = needed & known
    if not channels.any():
        return None
    values = torch.where(constant, signals[gated].value, 1)
    return Gate(rule, gate, reader, channels, needed & ~known, values, static)


def _is_gated(rule: Elementwise) -> bool:
    """Whether it multiplies two tensors, and only one node reads the result."""
    alone = rule.product and not (rule.unknown or rule.parameters or rule.shared)
    return alone and len(rule.operands) == 2 and len(rule.node.users) == 1 and rule.axes == (1, 1)


def _positions(node: fx.Node) -> int:
    return math.prod(known_shape(node)[2:])


def _static(
    gate: fx.Node,
    gated: fx.Node,
    graph: Graph,
    rules: Mapping[fx.Node, Rule],
    signals: Mapping[fx.Node, Signal],
) -> Static | None:
    squeeze, path = _squeeze(gate, gated, graph, rules), path_to(gated, rules)
    if squeeze is None or path is None:
        return None
    source, steps = path
    signal = signal_of(signals, source.operands[0], 1)
    taps = torch.cat([source.contribution(signal.value), source.bias[:, None]], 1)
    activations: list[str] = []
    has_shift = source.module.bias is not None
    for step in steps:
        if isinstance(step, Affine) and step.scale is not None and step.function and not activations:
            taps = taps * step.scale[:, None]
            taps[:, -1] += step.function(torch.zeros_like(step.scale))
            has_shift = True
        elif isinstance(step, Elementwise) and graph.layer(step.node) is not None:
            activations.append(str(step.node.target))
        elif not isinstance(step, PerChannel) or step.function is not None:
            return None  # a function of its own, or one that has parameters
    channels = depending(source, steps, signals)[0] & ~signals[gated].constant
    if not channels.any() or not has_shift:  # without bias and norm, what is kept would be more
        return None
    return Static(source, squeeze.operands[0], squeeze, tuple(activations), channels, taps)


def _squeeze(gate: fx.Node, gated: fx.Node, graph: Graph, rules: Mapping[fx.Node, Rule]) -> Weighted | None:
    """The first layer of those that make the gate of the averages of what it multiplies, if that is so."""
    node, layer = gate, None
    while len(node.users) == 1 and (rule := rules.get(node)) is not None:
        if isinstance(pool := graph.layer(node), _AVERAGES):
            sizes = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size,)
            whole = set(sizes) == {1} and rule.operands[0] is gated and len(gated.users) == 2
            return layer if whole and layer is not None and layer.operands[0] is node else None
        if isinstance(rule, Weighted) and rule.is_pointwise:
            layer = rule
        elif not is_step(rule):
            return None
        (node,) = rule.operands
    return None

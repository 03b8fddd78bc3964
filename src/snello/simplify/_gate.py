"""Constants that a gate multiplies: squeeze-and-excitation of dead neurons, up to a pointwise convolution.

A gate is one number for each example and channel. Where the channel that it multiplies is a constant, the product is
the same at every position, so that nobody needs the map: the pointwise convolution that reads it takes the gate
itself, with its columns times the constants, and adds what that gives everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx

from snello.graph import known_shape

from ._draft import Draft
from ._rule import Elementwise, Rule
from ._signal import Layout, Signal, same_order
from ._weighted import Weighted


@dataclass(frozen=True, eq=False)
class Gate:
    """A product of a map and of a gate, and the pointwise convolution that alone reads it.

    Attributes:
        product: the rule of the product.
        gate: the node.
        reader: the rule of the convolution.
        channels: boolean, shape (C,): the channels of which the gate alone depends on the input.
        varying: the same of those that depend on the input by the map, too.
        values: float64, shape (C,): what the gate multiplies in :attr:`channels`; else 0.
    """

    product: Elementwise
    gate: fx.Node
    reader: Weighted
    channels: Tensor
    varying: Tensor
    values: Tensor

    def saves_bytes(self, neurons: int, channels: int) -> bool:
        """Whether it takes fewer numbers: always, as the constants need not be kept.

        Args:
            neurons: of the reader, that are computed.
            channels: how many of :attr:`channels` those read.
        """
        return neurons * channels > 0

    def takes(self, read: Tensor) -> Tensor:
        """Which of the channels that the reader would read it need not: none if no other would be left."""
        return read & self.channels & (read & self.varying).any()

    def settle(self, rules: dict[fx.Node, Rule], useful: Mapping[fx.Node, Tensor], taken: Tensor) -> None:
        """The product is not made in some channels; the reader reads the gate there."""
        rules[self.product.node] = replace(self.product, left_out=self.channels)
        useful[self.gate].logical_or_(taken)

    def received(self, layout: Layout) -> Layout:
        """What the reader receives."""
        return layout

    def emit(self, draft: Draft, layouts: Mapping[fx.Node, Layout]) -> None:
        """Give the reader its columns for the channels of the gate."""
        produced, given = layouts[self.reader.node], layouts[self.gate]
        read = self.channels & given.present & self.reader.connected[0].any(0)
        if not read.any() or not len(produced.order):
            return
        columns = read.nonzero().flatten()
        name, plan = self.reader.name, draft.layers[self.reader.name]
        draft.layers[name] = replace(plan, gated=len(columns), folded=plan.folded + len(columns))
        weight = self.reader.taps[0, :, :, 0][produced.order][:, columns].double() * self.values[columns]
        draft.values[f"{name}.gated"] = weight.view(*weight.shape, *self.reader.module.kernel_size)  # type: ignore[misc]
        draft.gate(self.gate, self.reader.node)
        if not same_order(given, wanted := given.arranged(columns)):
            draft.fill(self.gate, self.reader.node, 1, given, wanted)


def gates(rules: Mapping[fx.Node, Rule], signals: Mapping[fx.Node, Signal]) -> dict[fx.Node, Gate]:
    """Pointwise convolution -> the product that it reads, where a gate multiplies some constant."""
    readers = (rule for rule in rules.values() if isinstance(rule, Weighted) and rule.is_pointwise)
    found = (_gate(reader, rules, signals) for reader in readers)
    return {gate.reader.node: gate for gate in found if gate is not None}


def _gate(reader: Weighted, rules: Mapping[fx.Node, Rule], signals: Mapping[fx.Node, Signal]) -> Gate | None:
    (product,) = reader.operands
    rule = rules.get(product)
    # Right behind the product: nothing can overwrite the gate before the reader sees it.
    if not isinstance(rule, Elementwise) or not _is_gated(rule) or product.next is not reader.node:
        return None
    gate, gated = sorted(rule.operands, key=_positions)
    if _positions(gate) > 1 or _positions(gated) == 1 or not {gate, gated} <= signals.keys():
        return None
    varying, constant = ~signals[product].constant, signals[gated].constant
    channels = varying & constant
    if not channels.any():
        return None
    values = signals[gated].value.masked_fill(~channels, 0)
    return Gate(rule, gate, reader, channels, varying & ~constant, values)


def _is_gated(rule: Elementwise) -> bool:
    """Whether it multiplies two tensors, and only one node reads the result."""
    alone = rule.product and not (rule.unknown or rule.parameters or rule.shared)
    return alone and len(rule.operands) == 2 and len(rule.node.users) == 1 and rule.axes == (1, 1)


def _positions(node: fx.Node) -> int:
    return math.prod(known_shape(node)[2:])

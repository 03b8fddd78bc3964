"""The values that passes take and return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from snello.graph import Graph
from snello.simplification.bypasses import Bypass
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ops.operation import Operation, signal_of


@dataclass(frozen=True)
class Facts:
    """Facts about a captured model. Each pass fills one more attribute, in this order.

    Attributes:
        graph: the graph, with shapes.
        operations: node -> its operation, for the nodes that have one.
        axes: node -> the axis of its channels, for the nodes whose channels are known.
        refused: node -> why its rule was not used, for the nodes whose rule has failed.
        signals: node -> the constants among its channels.
        useful: node -> the channels that are read, boolean, shape (C,).
        bypasses: pointwise convolution -> the bypass that it uses.
    """

    graph: Graph
    operations: Mapping[fx.Node, Operation]
    axes: Mapping[fx.Node, int]
    refused: Mapping[fx.Node, str] = field(default_factory=dict)
    signals: Mapping[fx.Node, Signal] = field(default_factory=dict)
    useful: Mapping[fx.Node, Tensor] = field(default_factory=dict)
    bypasses: Mapping[fx.Node, Bypass] = field(default_factory=dict)

    def whole_reads(self) -> list[tuple[fx.Node, fx.Node]]:
        """Return pairs (node without an operation, operand), which is read at full width."""
        return [
            (node, operand)
            for node in self.graph.nodes
            if node not in self.operations
            for operand in node.all_input_nodes
            if operand in self.axes
        ]


@dataclass(frozen=True)
class Arrangement:
    """Layouts of the lean network.

    Attributes:
        layouts: node -> the layout of its output, for the nodes whose channels are known.
        received, wanted: node -> the layouts of its operands before and after adapters.
        forced: producer -> the neurons that it must keep, in order, instead of the live ones.
    """

    layouts: Mapping[fx.Node, Layout]
    received: Mapping[fx.Node, list[Layout]]
    wanted: Mapping[fx.Node, list[Layout]]
    forced: Mapping[fx.Node, Tensor]


def incoming(operation: Operation, signals: Mapping[fx.Node, Signal]) -> list[Signal]:
    """Signals of an operation's operands."""
    return [
        signal_of(signals, operand, axis)
        for operand, axis in zip(operation.operands, operation.axes, strict=True)
    ]

"""Pass 3: propagate liveness backwards, and choose bypasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from snello.simplification.bypasses import Accepted, Bypass, candidates
from snello.simplification.bypasses.bypass import Found
from snello.simplification.cost import CostModel
from snello.simplification.ir.channels import Signal
from snello.simplification.ops.elementwise import Elementwise
from snello.simplification.ops.operation import Operation

from .facts import Facts, incoming
from .refused import rule_of


def liveness(facts: Facts, cost: CostModel) -> Facts:
    """Find the channels that are read, directly or not, by an output of the network.

    From the last node to the first:

    1. A node without an operation (such as the output) reads all channels of its operands.
    2. An operation reads the channels on which the useful channels of its output depend.
    3. A pointwise convolution may skip channels by a bypass, if the cost model accepts it. The
       operands of the bypass are then read, and the product before it is not computed there.

    Requires:
        `operations`, `axes` and `signals`.

    Ensures:
        `useful`, for every node in `signals`; `bypasses`, those in use, in the order of
        acceptance; `operations`, with the products that are not computed marked as such.
    """
    possible = candidates(Found(facts.graph, facts.operations, facts.signals))
    uses = _Uses(
        {node: torch.zeros_like(signal.constant) for node, signal in facts.signals.items()},
        {bypass.reader.node: bypass for bypass in possible},
    )
    for node in reversed(facts.graph.nodes):
        operation = facts.operations.get(node)
        if operation is None:
            for operand in node.all_input_nodes:
                uses.add_all(operand)
            continue
        signals = incoming(operation, facts.signals)
        signal = facts.signals.get(node, Signal.live(0))
        useful = uses.useful.get(node, _NOTHING)
        with rule_of(node):
            read = operation.live_inputs(useful, signal, *signals)
        if (skipped := _choose(uses, node, useful & ~signal.constant, read, cost)) is not None:
            read = [read[0] & ~skipped]
        for operand, channels in zip(operation.operands, read, strict=False):
            uses.add(operand, channels)
    operations = {
        node: _without(operation, uses.unmade.get(node))
        for node, operation in facts.operations.items()
    }
    return replace(facts, operations=operations, useful=uses.useful, bypasses=uses.used)


_NOTHING = torch.zeros(0, dtype=torch.bool)


@dataclass
class _Uses:
    """Findings of the pass so far.

    Attributes:
        useful: node -> channels that are read, boolean, shape (C,).
        possible: reader -> a bypass that it may use.
        coming: reader -> a bypass that an accepted one requires; it is used without asking the cost
            model.
        used: reader -> the bypass that it uses.
        unmade: product -> channels that are not computed.
    """

    useful: dict[fx.Node, Tensor]
    possible: Mapping[fx.Node, Bypass]
    coming: dict[fx.Node, Bypass] = field(default_factory=dict)
    used: dict[fx.Node, Bypass] = field(default_factory=dict)
    unmade: dict[fx.Node, Tensor] = field(default_factory=dict)

    def add(self, node: fx.Node, channels: Tensor) -> None:
        if node in self.useful:
            self.useful[node] = self.useful[node] | channels

    def add_all(self, node: fx.Node) -> None:
        if node in self.useful:
            self.useful[node] = torch.ones_like(self.useful[node])

    def accept(self, node: fx.Node, accepted: Accepted) -> None:
        self.used[node] = accepted.bypass
        if accepted.follows is not None:
            self.coming[accepted.follows.reader.node] = accepted.follows
        for operand, channels in accepted.read.items():
            self.add(operand, channels)
        self.unmade.update(accepted.unmade)


def _choose(
    uses: _Uses, node: fx.Node, neurons: Tensor, read: list[Tensor], cost: CostModel
) -> Tensor | None:
    """Use the first bypass of a node that the cost model accepts; return the skipped channels."""
    if (bypass := uses.coming.get(node)) is not None:
        skipped = bypass.skips(read[0])
        uses.accept(node, bypass.accepted(skipped))
        return skipped
    if (bypass := uses.possible.get(node)) is None:
        return None
    for choice in bypass.choices:
        skipped = choice.skips(read[0])
        if cost.accepts(choice.saving(int(neurons.sum()), int(skipped.sum()))):
            uses.accept(node, choice.accepted(skipped))
            return skipped
    return None


def _without(operation: Operation, channels: Tensor | None) -> Operation:
    if channels is None:
        return operation
    assert isinstance(operation, Elementwise)
    return replace(operation, unmade=channels)

"""Liveness: which channels are constant, which are read, and so which must physically exist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snello.graph import Graph, shape_of

from ._rules import Layer, Rule, Signal, rule_for


@dataclass(frozen=True)
class Layout:
    """What an edge of the lean graph carries.

    Attributes:
        kept: indices of the channels that are physically present, ascending.
        fill: float64, shape (full width,): the constant value of each channel that is not; else 0.
    """

    kept: Tensor
    fill: Tensor

    @property
    def width(self) -> int:
        """The full width: how many channels the original has."""
        return len(self.fill)

    @property
    def absent(self) -> Tensor:
        """Boolean, true for the channels that are not physically present."""
        mask = torch.ones(self.width, dtype=torch.bool)
        mask[self.kept] = False
        return mask

    @property
    def is_whole(self) -> bool:
        """Whether every channel is present."""
        return len(self.kept) == self.width

    @staticmethod
    def whole(channels: int) -> Layout:
        """Every channel is present."""
        return Layout(torch.arange(channels), torch.zeros(channels, dtype=torch.float64))


@dataclass(frozen=True)
class Liveness:
    """The analysis of a traced model.

    Attributes:
        rules: node -> its rule; None where there is none.
        layouts: node -> the layout of its output, for nodes whose output is a tensor with channels.
    """

    rules: dict[fx.Node, Rule | None]
    layouts: dict[fx.Node, Layout]


def analyse(graph: Graph) -> Liveness:
    """Signals forwards, use backwards, layouts forwards. The graph must carry shapes."""
    rules = {node: rule_for(graph, node) for node in graph.nodes}
    signals = _signals(graph, rules)
    useful = _useful(graph, rules, signals)
    kept_alive: set[fx.Node] = set()
    while True:
        layouts = _layouts(graph, rules, signals, useful, kept_alive)
        starving = _starving_producer(graph, rules, layouts)
        if starving is None:
            return Liveness(rules, layouts)
        kept_alive.add(starving)


def _channels(node: fx.Node) -> int | None:
    shape = shape_of(node)
    return shape[1] if shape is not None and len(shape) >= 2 else None


def _signals(graph: Graph, rules: dict[fx.Node, Rule | None]) -> dict[fx.Node, Signal]:
    signals: dict[fx.Node, Signal] = {}
    for node in graph.nodes:
        if (channels := _channels(node)) is None:
            continue
        rule = rules[node]
        inputs = operands(node)
        signals[node] = rule.forward(*(signals[a] for a in inputs)) if rule else Signal.live(channels)
    return signals


def _useful(
    graph: Graph, rules: dict[fx.Node, Rule | None], signals: dict[fx.Node, Signal]
) -> dict[fx.Node, Tensor]:
    useful = {node: torch.zeros_like(signal.constant) for node, signal in signals.items()}
    for node in reversed(graph.nodes):
        rule = rules[node]
        if rule is None:  # also the output node: it reads everything
            for operand in node.all_input_nodes:
                if operand in useful:
                    useful[operand][:] = True
            continue
        # A constant neuron is not computed, so that it reads nothing.
        needed = useful[node] & ~signals[node].constant if isinstance(rule, Layer) else useful[node]
        for operand in operands(node):
            useful[operand] |= rule.reads(needed)
    return useful


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node with a rule reads, in order; ``x + x`` reads x twice."""
    return [a for a in node.args[:2] if isinstance(a, fx.Node)]


def _layouts(
    graph: Graph,
    rules: dict[fx.Node, Rule | None],
    signals: dict[fx.Node, Signal],
    useful: dict[fx.Node, Tensor],
    kept_alive: set[fx.Node],
) -> dict[fx.Node, Layout]:
    layouts: dict[fx.Node, Layout] = {}
    for node, signal in signals.items():
        rule = rules[node]
        if rule is None:
            layouts[node] = Layout.whole(len(signal.constant))
        elif isinstance(rule, Layer):
            present = useful[node] & ~signal.constant
            if node in kept_alive:
                present[0] = True
            layouts[node] = Layout(present.nonzero().flatten(), signal.value.masked_fill(present, 0))
        else:
            layouts[node] = _passed_on(rule, [layouts[a] for a in operands(node)])
    return layouts


def _passed_on(rule: Rule, inputs: list[Layout]) -> Layout:
    """A layout through an operation: present channels stay present, absent ones pass as constants.

    A channel that nobody reads may be absent without being constant; its fill is then an arbitrary number,
    which nobody reads either.
    """
    present = rule.presence(*(~layout.absent for layout in inputs))
    out = rule.forward(*(Signal(layout.absent, layout.fill) for layout in inputs))
    return Layout(present.nonzero().flatten(), out.value.masked_fill(present, 0))


def _starving_producer(
    graph: Graph, rules: dict[fx.Node, Rule | None], layouts: dict[fx.Node, Layout]
) -> fx.Node | None:
    """A producer that must keep one neuron because its reader needs a tensor, if only for its shape."""
    for node in graph.nodes:
        rule = rules[node]
        if rule is not None and not (isinstance(rule, Layer) and len(layouts[node].kept)):
            continue  # passes emptiness on, or computes nothing itself
        for operand in node.all_input_nodes:
            if operand in layouts and not len(layouts[operand].kept):
                return _producer_of(operand, rules)
    return None


def _producer_of(node: fx.Node, rules: dict[fx.Node, Rule | None]) -> fx.Node:
    while not isinstance(rules[node], Layer):
        node = operands(node)[0]
    return node

"""Liveness: which channels are constant, which are read, and so which must physically exist."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from snello.errors import SimplifyError
from snello.graph import Graph, known_shape

from ._gate import gates
from ._match import match
from ._position import chains
from ._relief import Relief, Worth
from ._rule import Rule, Wanted, signal_of
from ._signal import Layout, Signal
from ._structure import Sizes
from ._weighted import Producer


@dataclass(frozen=True)
class Analysis:
    """What is known of a traced model.

    Attributes:
        graph: with shapes.
        rules: node -> its rule, for the nodes that have one.
        axes: node -> the axis of its channels, for the nodes whose channels are known.
        signals, useful: node -> what is known of each channel, and whether anything reads it.
        reliefs: pointwise convolution -> why it need not read some channels.
    """

    graph: Graph
    rules: dict[fx.Node, Rule]
    axes: dict[fx.Node, int]
    signals: dict[fx.Node, Signal]
    useful: dict[fx.Node, Tensor]
    reliefs: dict[fx.Node, Relief]


@dataclass
class Arrangement:
    """The layouts of the lean network.

    Attributes:
        layouts: node -> the layout of its output, for the nodes whose channels are known.
        received, wanted: node -> the layouts of its operands as they come, and as its rule wants them.
    """

    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    received: dict[fx.Node, list[Layout]] = field(default_factory=dict)
    wanted: dict[fx.Node, list[Layout]] = field(default_factory=dict)


def analyse(graph: Graph, *, worth: Worth) -> Analysis:
    """Signals forwards, use backwards.

    Args:
        graph: with shapes.
        worth: whether to relieve a pointwise convolution.
    """
    rules, axes = match(graph)
    analysis = Analysis(graph, rules, axes, {}, {}, {})
    for node, rule in rules.items():
        if node in axes:
            incoming = [
                signal_of(analysis.signals, a, axis) for a, axis in zip(rule.operands, rule.axes, strict=True)
            ]
            analysis.signals[node] = rule.forward(*incoming)
    analysis.reliefs.update(chains(rules, analysis.signals))
    analysis.reliefs.update(gates(graph, rules, analysis.signals))
    _find_useful(analysis, worth)
    return analysis


def _find_useful(analysis: Analysis, worth: Worth) -> None:
    useful = analysis.useful
    useful.update((node, torch.zeros_like(signal.constant)) for node, signal in analysis.signals.items())
    for node in reversed(analysis.graph.nodes):
        rule = analysis.rules.get(node)
        if rule is None:  # also the output node: it reads everything
            for operand in node.all_input_nodes:
                if operand in useful:
                    useful[operand][:] = True
            continue
        incoming = [
            signal_of(analysis.signals, a, axis) for a, axis in zip(rule.operands, rule.axes, strict=True)
        ]
        signal = analysis.signals.get(node, Signal.live(0))
        read = rule.reads(useful.get(node, torch.zeros(0)), signal, *incoming)
        if (relief := analysis.reliefs.get(node)) is not None:
            neurons, given = int((useful[node] & ~signal.constant).sum()), read[0]
            del analysis.reliefs[node]
            for choice in relief.choices:
                taken = choice.takes(given)
                if worth(choice, neurons, int(taken.sum())):
                    analysis.reliefs[node] = choice
                    choice.settle(analysis, taken)
                    read = [given & ~taken]
                    break
        for operand, channels in zip(rule.operands, read, strict=False):
            if operand in useful:
                useful[operand] |= channels


def arrange(analysis: Analysis, kept_alive: dict[fx.Node, Tensor]) -> Arrangement:
    """Layouts forwards.

    Args:
        analysis: of the model.
        kept_alive: producers that keep other neurons than liveness would, with all that they keep. Grows when
            a reader needs a tensor of which nothing is left, if only for its shape.
    """
    while True:
        result = Arrangement()
        hungry = _arrange(analysis, kept_alive, result)
        if hungry is None:
            return result
        producer, channel = _producer(analysis, hungry)
        kept = result.layouts[producer].order
        if channel in kept:
            raise SimplifyError(f"{hungry.name!r} needs a channel that {producer.name!r} cannot give it")
        kept_alive[producer] = torch.cat([kept, torch.tensor([channel])]).sort().values


def _arrange(analysis: Analysis, kept_alive: dict[fx.Node, Tensor], result: Arrangement) -> fx.Node | None:
    """Fill in the arrangement; stops at a tensor that is needed and of which nothing is left."""
    for node in analysis.graph.nodes:
        rule = analysis.rules.get(node)
        if rule is None:
            for operand in node.all_input_nodes:
                if operand in result.layouts and not len(result.layouts[operand].order):
                    return operand
            continue
        received = [_layout(result, a, axis) for a, axis in zip(rule.operands, rule.axes, strict=True)]
        if (relief := analysis.reliefs.get(node)) is not None:
            received = [relief.received(received[0])]
        wanted = received
        if node in analysis.axes:
            wanted, result.layouts[node] = _apply(analysis, rule, received, kept_alive)
        hungry = isinstance(rule, Sizes)
        for operand, has, wants in zip(rule.operands, received, wanted, strict=True):
            if not len(has.order) and (hungry or len(wants.order)):
                return operand
        result.received[node], result.wanted[node] = received, wanted
    return None


def _layout(result: Arrangement, node: fx.Node, axis: int) -> Layout:
    return result.layouts.get(node) or Layout.whole(known_shape(node)[axis])


def _apply(
    analysis: Analysis, rule: Rule, received: list[Layout], kept_alive: dict[fx.Node, Tensor]
) -> Wanted:
    signal, useful = analysis.signals[rule.node], analysis.useful[rule.node]
    if isinstance(rule, Producer):
        return rule.arrange(signal, useful, *received, kept_alive=kept_alive.get(rule.node))
    return rule.arrange(signal, useful, *received)


def _producer(analysis: Analysis, node: fx.Node) -> tuple[fx.Node, int]:
    """A layer upstream, and a neuron of it that some channel of the node is made of."""
    channels = torch.ones_like(analysis.useful[node])
    while not isinstance(rule := analysis.rules[node], Producer):
        sources = zip(rule.operands, rule.sources(channels), strict=True)
        node, channels = next((a, c) for a, c in sources if a in analysis.axes and c.any())
    return node, int(channels.nonzero()[0])


def whole_readers(analysis: Analysis) -> list[tuple[fx.Node, fx.Node]]:
    """Nodes without a rule, with each operand that they must be given at full width."""
    return [
        (node, operand)
        for node in analysis.graph.nodes
        if node not in analysis.rules
        for operand in node.all_input_nodes
        if operand in analysis.axes
    ]

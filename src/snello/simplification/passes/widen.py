"""Pass 5: keep dead neurons whose removal would cost more than it saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snello.graph import known_shape
from snello.simplification.bypasses.bypass import positions
from snello.simplification.cost import CostModel
from snello.simplification.ir.channels import Layout, same_order
from snello.simplification.ops.layers import Weighted
from snello.simplification.ops.operation import Operation
from snello.simplification.work import Work

from .facts import Arrangement, Facts
from .layout import layout


def round_up(facts: Facts, arrangement: Arrangement, multiple: int) -> Arrangement:
    """Keep dead neurons until the widths of layers are multiples of a number.

    1. An ungrouped layer keeps its dead neurons of lowest index, up to the next multiple or to its
       original width.
    2. The widths of grouped convolutions are not changed.

    Requires:
        `multiple` >= 1.

    Ensures:
        A layout of the same model that keeps every channel of `arrangement`'s ungrouped layers.
    """
    if multiple == 1:
        return arrangement
    forced = dict(arrangement.forced)
    for node, operation in facts.operations.items():
        if not isinstance(operation, Weighted) or operation.groups > 1:
            continue
        own = arrangement.layouts[node]
        count = min(own.width, math.ceil(len(own.order) / multiple) * multiple)
        if count > len(own.order):
            spare = (~own.present).nonzero().flatten()[: count - len(own.order)]
            forced[node] = torch.cat([own.order, spare]).sort().values
    return layout(facts, forced)


def widen(facts: Facts, arrangement: Arrangement, cost: CostModel) -> Arrangement:
    """Keep dead neurons to avoid index operations, where the cost model prefers that.

    1. Where operands with different channels are combined, or an operand is read at full width, the
       producers of the operands may keep the channels that the operands lack.
    2. They do if the cost model finds the computation of these channels cheaper than the index
       operation. A cost model with `widens_in_part` is not asked: every operand with a suitable
       producer is widened.
    3. The layout is repeated until no more neurons are kept.

    Requires:
        An arrangement of the same model.

    Ensures:
        A layout in which producers keep at least what they kept.
    """
    if not cost.widens:
        return arrangement
    choose = _that_can_keep if cost.widens_in_part else _worth_keeping
    while True:
        wider = _forced(facts, arrangement, choose, cost)
        if all(torch.equal(order, arrangement.forced.get(p, _NONE)) for p, order in wider.items()):
            return arrangement
        arrangement = layout(facts, wider)


_NONE = torch.zeros(0)


@dataclass(frozen=True)
class _Join:
    """A node whose operands need an index operation to have the same channels in one order.

    Attributes:
        order: the channels that the node needs, in order.
        operands: (node, axis, layout) of each operand with another layout.
    """

    order: Tensor
    operands: tuple[tuple[fx.Node, int, Layout], ...]


_Choose = Callable[[Facts, Arrangement, _Join, CostModel], list[fx.Node]]


def _forced(
    facts: Facts, arrangement: Arrangement, choose: _Choose, cost: CostModel
) -> Mapping[fx.Node, Tensor]:
    forced = dict(arrangement.forced)
    for join in _joins(facts, arrangement):
        for producer in choose(facts, arrangement, join, cost):
            kept = forced.get(producer, arrangement.layouts[producer].order)
            if missing := set(join.order.tolist()) - set(kept.tolist()):
                forced[producer] = torch.tensor(sorted({*kept.tolist(), *missing}))
    return forced


def _joins(facts: Facts, arrangement: Arrangement) -> list[_Join]:
    found = []
    for node, operation in facts.operations.items():
        if node not in arrangement.wanted or node not in facts.axes:
            continue
        received, wanted = arrangement.received[node], arrangement.wanted[node]
        if operation.accumulates:
            wanted = [own.arranged(arrangement.layouts[node].order) for own in received]
        operands = zip(operation.operands, operation.axes, received, wanted, strict=True)
        differing = tuple(
            (a, axis, has) for a, axis, has, wants in operands if not same_order(has, wants)
        )
        if differing and all(same_order(w, wanted[0]) for w in wanted):
            found.append(_Join(wanted[0].order, differing))
    for _, operand in facts.whole_reads():
        own = arrangement.layouts[operand]
        if not own.is_natural:
            found.append(_Join(torch.arange(own.width), ((operand, facts.axes[operand], own),)))
    return found


def _worth_keeping(
    facts: Facts, arrangement: Arrangement, join: _Join, cost: CostModel
) -> list[fx.Node]:
    """Producers of all operands, if no other node reads them and widening them costs less."""
    producers: list[fx.Node] = []
    computed, moved = Work(), Work()
    for operand, axis, own in join.operands:
        producer = _own_producer(facts, operand)
        if producer is None:
            return []
        producers.append(producer)
        missing = len(join.order) - len(own.order)
        computed += _neuron(facts, arrangement, producer, operand) * missing
        moved += _move(operand, axis) * len(join.order) + Work(calls=1)
    return producers if cost.keeps_dead(computed, moved) else []


def _that_can_keep(
    facts: Facts, arrangement: Arrangement, join: _Join, cost: CostModel
) -> list[fx.Node]:
    """For each operand, a producer that can compute the channels that it lacks, if there is one.

    The cost model is not asked.
    """
    found = (_some_producer(facts, operand) for operand, _, _ in join.operands)
    return [producer for producer in found if producer is not None]


def _some_producer(facts: Facts, node: fx.Node) -> fx.Node | None:
    """Find an ungrouped layer whose neurons are channels of this node, as far upstream as possible.

    One operand of a sum is enough: the sum has all channels that are present in one of its
    operands, and so have all later sums of a residual stream.
    """
    operation = facts.operations.get(node)
    if isinstance(operation, Weighted):
        return node if operation.groups == 1 else None
    if operation is None or not operation.channelwise:
        return None
    # Follow the operand that is a sum: it leads further up a residual stream than a branch.
    operands = sorted(operation.channelwise, key=lambda n: not _is_stream(facts, n))
    return next((found for n in operands if (found := _some_producer(facts, n)) is not None), None)


def _is_stream(facts: Facts, node: fx.Node) -> bool:
    """True if the node is a sum, possibly followed by activations and norms."""
    operation = facts.operations.get(node)
    while operation is not None and not operation.accumulates and _passes_through(operation):
        operation = facts.operations.get(operation.operands[0])
    return operation is not None and operation.accumulates


def _passes_through(operation: Operation) -> bool:
    return bool(operation.channelwise) and len(operation.operands) == 1


def _own_producer(facts: Facts, node: fx.Node) -> fx.Node | None:
    """Find the ungrouped layer whose neurons are the channels of this node and of no other."""
    while len(node.users) == 1:
        operation = facts.operations.get(node)
        if isinstance(operation, Weighted):
            return node if operation.groups == 1 else None
        if operation is None or operation.accumulates or not _passes_through(operation):
            return None
        (node,) = operation.operands
    return None


def _neuron(facts: Facts, arrangement: Arrangement, producer: fx.Node, operand: fx.Node) -> Work:
    """Work of computing one neuron, from its layer to an operand of a join."""
    operation = facts.operations[producer]
    assert isinstance(operation, Weighted)
    taps = len(arrangement.wanted[producer][0].order) * operation.taps.shape[3]
    carried = 0
    while operand is not producer:
        carried += positions(operand, facts.axes[operand])
        (operand,) = facts.operations[operand].operands
    return Work(macs=positions(producer, operation.axes[0]) * taps, elementwise=carried)


def _move(node: fx.Node, axis: int) -> Work:
    """Work of copying one channel by index."""
    count = positions(node, axis)
    innermost = math.prod(known_shape(node)[axis + 1 :]) == 1
    return Work(moved_innermost=count) if innermost else Work(moved=count)

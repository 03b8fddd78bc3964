"""Index operations cost time: which are worth it, and which dead neurons are better left where they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snello.graph import known_shape

from ._analysis import Analysis, Arrangement, arrange, whole_readers
from ._gate import Gate
from ._position import Chain
from ._relief import Relief
from ._rule import Add, Elementwise, PerChannel, View
from ._signal import Layout, same_order
from ._weighted import Weighted

# Nanoseconds on one thread, batch 1, float32 (benchmarks/index_operations.py): they only have to be right
# about which of two costs is the larger.
MAC = 1 / 35
"""One multiply-accumulate of a convolution or a linear layer."""
ELEMENTWISE = 0.3
"""One element through BatchNorm and activation."""
MOVED = 0.15
"""One element copied, selected or added by index, where the positions of a channel follow each other."""
MOVED_INNERMOST = 0.7
"""The same where the channels are innermost in memory (tokens)."""
CALL = 8_000.0
"""One more operation."""


_Choose = Callable[[Analysis, Arrangement, "_Join"], list[fx.Node]]


@dataclass(frozen=True)
class _Join:
    """A place where operands need an index operation to get into one order."""

    order: Tensor
    operands: tuple[tuple[fx.Node, int, Layout], ...]


def prefer_speed(analysis: Analysis, kept_alive: dict[fx.Node, Tensor]) -> Arrangement:
    """Keep the dead neurons whose removal would cost more time in index operations than it saves.

    Args:
        analysis: of the model.
        kept_alive: grows by the producers that keep dead neurons, with all neurons that they keep, in order.
    """
    return _widened(analysis, kept_alive, _worth_keeping)


def saves_bytes(relief: Relief, neurons: int, channels: int) -> bool:
    """Whether relieving a pointwise convolution takes fewer numbers. Those that a gate spares are few: it must save
    time, too. Arguments as for :meth:`Relief.saves_bytes`."""
    fewer = relief.saves_bytes(neurons, channels)
    return fewer and (not isinstance(relief, Gate) or _gate_saves_time(relief, neurons, channels))


def saves_time(relief: Relief, neurons: int, channels: int) -> bool:
    """The same, where a table must save time, too."""
    fewer = saves_bytes(relief, neurons, channels)
    return fewer and (not isinstance(relief, Chain) or _table_saves_time(relief, neurons, channels))


def _gate_saves_time(gate: Gate, neurons: int, channels: int) -> bool:
    positions = _positions(gate.reader.node, 1)
    # The map is given its constants; map, product and columns.
    without = CALL + channels * positions * (MOVED + ELEMENTWISE + neurons * MAC)
    if gate.static is None:
        # Channels of the gate are chosen, multiplied by columns, and the result is added.
        return without > 3 * CALL + channels * neurons * MAC + neurons * positions * MOVED
    taps = gate.static.source.taps.shape[3]
    without += CALL + int(gate.static.channels.sum()) * positions * (taps * MAC + ELEMENTWISE)
    # Of each channel one value for each tap, or less; the results are chosen by position and added.
    values = min(taps, positions)
    given = neurons * positions * (values * MAC + 2 * MOVED)
    return without > 6 * CALL + channels * neurons * values * MAC + given


def _table_saves_time(chain: Chain, neurons: int, channels: int) -> bool:
    positions, sources = _positions(chain.reader.node, 1), _positions(chain.source.operands[0], 1)
    # Without a table the source is given its constants, too: one more operation.
    given = CALL + channels * sources * MOVED
    computed = channels * positions * ((chain.taps + neurons) * MAC + ELEMENTWISE)
    added = 2 * CALL + neurons * positions * MOVED  # the ways to hang over, and the sum
    return given + computed > added


def prefer_plain(analysis: Analysis, kept_alive: dict[fx.Node, Tensor]) -> Arrangement:
    """Keep the dead neurons whose removal would need an index operation, wherever a layer can keep them.

    Args:
        analysis: of the model.
        kept_alive: as for :func:`prefer_speed`.
    """
    return _widened(analysis, kept_alive, _that_can_keep)


def _widened(analysis: Analysis, kept_alive: dict[fx.Node, Tensor], choose: _Choose) -> Arrangement:
    while True:
        arrangement = arrange(analysis, kept_alive)
        before = {producer: len(order) for producer, order in kept_alive.items()}
        for join in _joins(analysis, arrangement):
            for producer in choose(analysis, arrangement, join):
                kept = kept_alive.get(producer, arrangement.layouts[producer].order)
                if missing := set(join.order.tolist()) - set(kept.tolist()):
                    kept_alive[producer] = torch.tensor(sorted({*kept.tolist(), *missing}))
        if before == {producer: len(order) for producer, order in kept_alive.items()}:
            return arrangement


def _joins(analysis: Analysis, arrangement: Arrangement) -> list[_Join]:
    found = []
    for node, rule in analysis.rules.items():
        if node not in arrangement.wanted or node not in analysis.axes:
            continue
        received, wanted = arrangement.received[node], arrangement.wanted[node]
        if isinstance(rule, Add):
            wanted = [layout.arranged(arrangement.layouts[node].order) for layout in received]
        operands = zip(rule.operands, rule.axes, received, wanted, strict=True)
        differing = tuple((a, axis, has) for a, axis, has, wants in operands if not same_order(has, wants))
        if differing and all(same_order(w, wanted[0]) for w in wanted):
            found.append(_Join(wanted[0].order, differing))
    for _, operand in whole_readers(analysis):
        layout, axis = arrangement.layouts[operand], analysis.axes[operand]
        if not layout.is_natural:
            found.append(_Join(torch.arange(layout.width), ((operand, axis, layout),)))
    return found


def _worth_keeping(analysis: Analysis, arrangement: Arrangement, join: _Join) -> list[fx.Node]:
    """The producers to widen, if they can be, and if that costs less than the index operation."""
    producers, kept, moved = [], 0.0, 0.0
    for operand, axis, layout in join.operands:
        producer = _own_producer(analysis, operand)
        if producer is None:
            return []
        producers.append(producer)
        missing = len(join.order) - len(layout.order)
        kept += missing * _neuron_time(analysis, arrangement, producer, operand)
        moved += CALL + len(join.order) * _positions(operand, axis) * _rate(operand, axis)
    return producers if kept < moved else []


def _that_can_keep(analysis: Analysis, arrangement: Arrangement, join: _Join) -> list[fx.Node]:
    """For each operand a producer that can carry what it lacks, if it has one."""
    found = (_some_producer(analysis, operand) for operand, _, _ in join.operands)
    return [producer for producer in found if producer is not None]


def _some_producer(analysis: Analysis, node: fx.Node) -> fx.Node | None:
    """An ungrouped layer whose neurons reach this node: of a sum's, the one furthest up.

    One is enough: what one operand of a sum carries, the sum carries, and every sum after it.
    """
    rule = analysis.rules.get(node)
    if isinstance(rule, Weighted):
        return node if rule.groups == 1 else None
    if isinstance(rule, View) and rule.before * rule.after > 1:
        return None
    if not isinstance(rule, (Add, PerChannel, Elementwise)):
        return None
    # A sum among the operands leads further up a residual stream than a branch does.
    channelwise = rule.operands[: rule.own] if isinstance(rule, Elementwise) else rule.operands
    operands = sorted(channelwise, key=lambda n: not _is_stream(analysis, n))
    return next((found for n in operands if (found := _some_producer(analysis, n)) is not None), None)


def _is_stream(analysis: Analysis, node: fx.Node) -> bool:
    """Whether the node is a sum, possibly after an activation or a normalisation."""
    rule = analysis.rules.get(node)
    while (
        isinstance(rule, (PerChannel, Elementwise)) and not isinstance(rule, Add) and len(rule.operands) == 1
    ):
        rule = analysis.rules.get(rule.operands[0])
    return isinstance(rule, Add)


def _own_producer(analysis: Analysis, node: fx.Node) -> fx.Node | None:
    """The ungrouped layer whose neurons reach this node channel by channel, and nothing else."""
    while len(node.users) == 1:
        rule = analysis.rules.get(node)
        if isinstance(rule, Weighted):
            return node if rule.groups == 1 else None
        single = isinstance(rule, (PerChannel, Elementwise)) and len(rule.operands) == 1
        if rule is None or not single or (isinstance(rule, View) and rule.before * rule.after > 1):
            return None
        (node,) = rule.operands
    return None


def _neuron_time(analysis: Analysis, arrangement: Arrangement, producer: fx.Node, operand: fx.Node) -> float:
    """What it costs to compute one neuron, and to carry it to the operand."""
    rule = analysis.rules[producer]
    assert isinstance(rule, Weighted)
    received = arrangement.wanted[producer][0]
    positions = _positions(producer, rule.axes[0])
    taps = len(received.order) * rule.taps.shape[3]
    carried = 0
    while operand is not producer:
        carried += _positions(operand, analysis.axes[operand])
        (operand,) = analysis.rules[operand].operands
    return positions * taps * MAC + carried * ELEMENTWISE


def _positions(node: fx.Node, axis: int) -> int:
    """Positions per channel, for one example."""
    shape = known_shape(node)
    return math.prod(shape[1:]) // shape[axis] if axis else math.prod(shape[1:])


def _rate(node: fx.Node, axis: int) -> float:
    return MOVED if math.prod(known_shape(node)[axis + 1 :]) > 1 else MOVED_INNERMOST


def round_up(analysis: Analysis, arrangement: Arrangement, multiple: int) -> dict[fx.Node, Tensor]:
    """Dead neurons to keep so that channel counts are multiples of a number, where the width allows it.

    Returns:
        The producers that keep more, with all that they keep. Grouped convolutions keep their own counts.
    """
    kept = {}
    for node, rule in analysis.rules.items():
        if not isinstance(rule, Weighted) or rule.groups > 1:
            continue
        layout = arrangement.layouts[node]
        count = min(layout.width, math.ceil(len(layout.order) / multiple) * multiple)
        if count > len(layout.order):
            spare = (~layout.present).nonzero().flatten()[: count - len(layout.order)]
            kept[node] = torch.cat([layout.order, spare]).sort().values
    return kept

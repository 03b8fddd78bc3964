"""Which tensors a sum may overwrite: those whose memory nobody reads later."""

from __future__ import annotations

import operator

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from snello.neurons import is_batchnorm

from ._analysis import Analysis, Arrangement
from ._rule import Add
from ._signal import same_order
from ._structure import Concat

_FRESH = (nn.Linear, _ConvNd, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.LayerNorm)
"""Modules whose output is never a view of their input."""

Memory = dict[fx.Node, set[fx.Node]]
"""Node -> the nodes that may share its memory, itself included."""


def overwritable(analysis: Analysis, arrangement: Arrangement) -> frozenset[fx.Node]:
    """Operands of sums that may be added to in place once no gradient is recorded.

    Whatever is not known to make a new tensor is taken for a view of its inputs.
    """
    order = {node: i for i, node in enumerate(analysis.graph.nodes)}
    memory: Memory = {}
    found = set()
    for node in analysis.graph.nodes:
        if isinstance(rule := analysis.rules.get(node), Add):
            bases = _bases(rule, arrangement, memory, order)
            found.update(bases)
            sources = bases or _sources(rule, arrangement)
        else:
            sources = [] if _is_fresh(analysis, node) else node.all_input_nodes
        shared = {node}.union(*(memory[source] for source in sources))
        memory.update((member, shared) for member in shared)
    return frozenset(found)


def _bases(rule: Add, arrangement: Arrangement, memory: Memory, order: dict[fx.Node, int]) -> list[fx.Node]:
    """The operand that the sum adds to, if it may overwrite it."""
    received = arrangement.received[rule.node]
    if same_order(*received) or not all(len(layout.order) for layout in received):
        return []
    at = rule.base(received)
    base, other = rule.operands[at], rule.operands[1 - at]
    group = memory[base]
    last = max(order[reader] for member in group for reader in member.users)
    given = any(member.op in ("placeholder", "get_attr") for member in group)
    return [base] if last <= order[rule.node] and not given and other not in group else []


def _sources(rule: Add, arrangement: Arrangement) -> list[fx.Node]:
    """Operands whose memory a sum that overwrites nothing of ours may return."""
    received = arrangement.received[rule.node]
    if not all(len(layout.order) for layout in received):
        return list(rule.operands)  # it is one of them
    kept = same_order(*received)
    return [rule.operands[0]] if kept and rule.node.target in (operator.iadd, "add_") else []


def _is_fresh(analysis: Analysis, node: fx.Node) -> bool:
    module = analysis.graph.layer(node)
    if module is None:
        return isinstance(analysis.rules.get(node), Concat)
    plain = isinstance(module, nn.ReLU) and not module.inplace
    return isinstance(module, _FRESH) or is_batchnorm(module) or plain

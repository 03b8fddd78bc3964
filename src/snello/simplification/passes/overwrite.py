"""Pass 6: find the tensors that a sum may overwrite, because no node reads their memory later."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from snello.simplification.ir.channels import same_order
from snello.simplification.ops.concat import Concat
from snello.simplification.ops.norms import is_plain_batchnorm
from snello.simplification.ops.operation import Operation

from .facts import Arrangement, Facts

_FRESH = (nn.Linear, _ConvNd, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.LayerNorm)
"""Modules whose output is never a view of their input."""

Memory = Mapping[fx.Node, set[fx.Node]]
"""Node -> the nodes that may share its memory, itself included."""


def overwritable(facts: Facts, arrangement: Arrangement) -> frozenset[fx.Node]:
    """Find the operands of sums that may be added to in place once no gradient is recorded.

    1. Only a sum of operands with different channels overwrites its base.
    2. No node may read the base's memory after the sum; the memory must not belong to an input or a
       parameter, nor be shared with the other operand.
    3. An operation that is not known to return a new tensor is treated as a view of its inputs.

    Requires:
        An arrangement of the same model.

    Ensures:
        A set of operands of operations that accumulate.
    """
    order = {node: i for i, node in enumerate(facts.graph.nodes)}
    memory: dict[fx.Node, set[fx.Node]] = {}
    found: set[fx.Node] = set()
    for node in facts.graph.nodes:
        operation = facts.operations.get(node)
        if operation is not None and operation.accumulates:
            bases = _bases(operation, arrangement, memory, order)
            found.update(bases)
            sources = bases or _sources(operation, arrangement)
        else:
            sources = [] if _is_fresh(facts, node) else node.all_input_nodes
        shared = {node}.union(*(memory[source] for source in sources))
        memory.update((member, shared) for member in shared)
    return frozenset(found)


def _bases(
    operation: Operation, arrangement: Arrangement, memory: Memory, order: Mapping[fx.Node, int]
) -> list[fx.Node]:
    """The base of a sum, in a list, if it may be overwritten; else an empty list."""
    received = arrangement.received[operation.node]
    if same_order(*received) or any(layout.is_empty for layout in received):
        return []
    at = operation.base(received)
    base, other = operation.operands[at], operation.operands[1 - at]
    group = memory[base]
    last = max(order[reader] for member in group for reader in member.users)
    given = any(member.op in ("placeholder", "get_attr") for member in group)
    return [base] if last <= order[operation.node] and not given and other not in group else []


def _sources(operation: Operation, arrangement: Arrangement) -> list[fx.Node]:
    """Operands whose memory the result of a sum may share, if the sum does not overwrite a base."""
    received = arrangement.received[operation.node]
    if any(layout.is_empty for layout in received):
        return list(operation.operands)  # the lean graph uses one of them as the result
    in_place = same_order(*received) and operation.node.target in (operator.iadd, "add_")
    return [operation.operands[0]] if in_place else []


def _is_fresh(facts: Facts, node: fx.Node) -> bool:
    module = facts.graph.layer(node)
    if module is None:
        return isinstance(facts.operations.get(node), Concat)
    plain = isinstance(module, nn.ReLU) and not module.inplace
    return isinstance(module, _FRESH) or is_plain_batchnorm(module) or plain

"""Pass 1: find the operation of each node."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from torch import fx

from snello.graph import Graph
from snello.simplification.ops.call import Call, sizes
from snello.simplification.ops.operation import Absorbed, Operation
from snello.simplification.ops.registry import find_operation, patterns
from snello.simplification.ops.splitting import SplitChannels

from .facts import Facts
from .refused import RuleError, rule_of


def match(graph: Graph, refused: Mapping[fx.Node, str] | None = None) -> Facts:
    """Find the operation of each node, and the axis of its channels.

    1. A pattern of several nodes is one operation, at its last node, if its operands have their
       channels on the axes that it expects; its other nodes are absorbed.
    2. Any other node is looked up in the registry, given the axes of the nodes before it.
    3. If views split the channels into several axes (heads and their width, or an image), the axis
       that is chosen is the one for which most nodes have known channels.
    4. A node without a rule, or whose rule has failed, has no operation and receives its inputs at
       full width.

    Args:
        graph: graph of the model.
        refused: node whose rule has failed -> the reason.

    Requires:
        A graph with shapes.

    Ensures:
        `operations` and `axes`. Every node whose operation has an axis is in `axes`.
    """
    first = _matched(graph, refused or {}, {})
    found = [first, *(_matched(graph, refused or {}, splits) for splits in _choices(first))]
    return max(found, key=lambda facts: len(facts.axes))  # the first of several maxima


def _choices(facts: Facts) -> Iterator[dict[int, int]]:
    """All choices of an axis for each kind of split, except the first axis for all of them.

    A kind is the number of axes into which a view splits the channels.
    """
    parts = sorted(
        {
            len(sizes(node)) - len(sizes(operation.operands[0])) + 1
            for node, operation in facts.operations.items()
            if isinstance(operation, SplitChannels)
        }
    )
    choices = itertools.product(*(range(count) for count in parts))
    yield from (dict(zip(parts, choice, strict=True)) for choice in choices if any(choice))


def _matched(graph: Graph, refused: Mapping[fx.Node, str], splits: Mapping[int, int]) -> Facts:
    found = (
        operation
        for operation in patterns(graph)
        if not {*operation.steps, operation.node} & set(refused)
    )
    starts = {operation.steps[0]: operation for operation in found}
    pending: dict[fx.Node, Operation] = {}
    operations: dict[fx.Node, Operation] = {}
    axes: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node in starts and _fits(starts[node], axes):
            pending.update(_members(starts[node]))
        if node in refused:
            continue
        with rule_of(node):
            operation = pending.get(node) or find_operation(Call(graph, node, axes, splits))
        if operation is None:
            continue
        operations[node] = operation
        if operation.axis is not None:
            axes[node] = operation.axis
    for node, operation in operations.items():
        if isinstance(operation, Absorbed) and any(
            u not in operations for u in node.users if u.users
        ):
            raise RuleError(node, ValueError("one of its parts has no rule"))
    return Facts(graph, operations, axes, refused)


def _fits(operation: Operation, axes: Mapping[fx.Node, int]) -> bool:
    """True if the operands of a pattern have their channels on the axes that it expects."""
    expected = zip(operation.operands, operation.axes, strict=True)
    return all(axes.get(operand) == axis for operand, axis in expected)


def _members(operation: Operation) -> Iterator[tuple[fx.Node, Operation]]:
    yield from ((step, Absorbed.of(step)) for step in operation.steps)
    yield operation.node, operation

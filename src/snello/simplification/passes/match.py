"""Pass 1: find the operation of each node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from snello.graph import Graph
from snello.simplification.ops.call import Call
from snello.simplification.ops.operation import Absorbed, Operation
from snello.simplification.ops.registry import find_operation, patterns

from .facts import Facts


def match(graph: Graph) -> Facts:
    """Find the operation of each node, and the axis of its channels.

    1. A pattern of several nodes is one operation, at its last node, if its operands have their channels
       on the axes that it expects; its other nodes are absorbed.
    2. Any other node is asked of the registry, given the axes of the nodes before it.
    3. A node that no rule knows has no operation: it gets its inputs at full width.

    Requires:
        A graph with shapes.

    Ensures:
        ``operations`` and ``axes``. Every node of an operation with an axis is in ``axes``.
    """
    starts = {found.steps[0]: found for found in patterns(graph)}
    pending: dict[fx.Node, Operation] = {}
    operations: dict[fx.Node, Operation] = {}
    axes: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node in starts and _fits(starts[node], axes):
            pending.update(_members(starts[node]))
        operation = pending.get(node) or find_operation(Call(graph, node, axes))
        if operation is None:
            continue
        operations[node] = operation
        if operation.axis is not None:
            axes[node] = operation.axis
    return Facts(graph, operations, axes)


def _fits(operation: Operation, axes: Mapping[fx.Node, int]) -> bool:
    expected = zip(operation.operands, operation.axes, strict=True)
    return all(axes.get(operand) == axis for operand, axis in expected)


def _members(operation: Operation) -> Iterator[tuple[fx.Node, Operation]]:
    yield from ((step, Absorbed.of(step)) for step in operation.steps)
    yield operation.node, operation

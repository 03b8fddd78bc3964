"""Pass 1: find the operation of each node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from snello.graph import Graph
from snello.simplification.ops.call import Call
from snello.simplification.ops.operation import Absorbed, Operation
from snello.simplification.ops.registry import find_operation, patterns

from .facts import Facts
from .refused import rule_of


def match(graph: Graph, refused: Mapping[fx.Node, str] | None = None) -> Facts:
    """Find the operation of each node, and the axis of its channels.

    1. A pattern of several nodes is one operation, at its last node, if its operands have their channels
       on the axes that it expects; its other nodes are absorbed.
    2. Any other node is asked of the registry, given the axes of the nodes before it.
    3. A node that no rule knows has no operation: it gets its inputs at full width. So does one whose rule
       has failed.

    Args:
        graph: of the model.
        refused: nodes whose rule has failed -> the reason.

    Requires:
        A graph with shapes.

    Ensures:
        ``operations`` and ``axes``. Every node of an operation with an axis is in ``axes``.
    """
    refused = refused or {}
    found = (
        operation for operation in patterns(graph) if not {*operation.steps, operation.node} & set(refused)
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
            operation = pending.get(node) or find_operation(Call(graph, node, axes))
        if operation is None:
            continue
        operations[node] = operation
        if operation.axis is not None:
            axes[node] = operation.axis
    return Facts(graph, operations, axes, refused)


def _fits(operation: Operation, axes: Mapping[fx.Node, int]) -> bool:
    expected = zip(operation.operands, operation.axes, strict=True)
    return all(axes.get(operand) == axis for operand, axis in expected)


def _members(operation: Operation) -> Iterator[tuple[fx.Node, Operation]]:
    yield from ((step, Absorbed.of(step)) for step in operation.steps)
    yield operation.node, operation

"""Pass 9: keep neurons until the plan has no edits, so that the model's own forward can be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, fx

from snello.simplification.ir.edits import GraphEdit

from .facts import Arrangement, Facts
from .layout import layout
from .lower import Decision

Lower = Callable[[Arrangement], Decision]


def without_edits(
    facts: Facts, arrangement: Arrangement, lower: Lower, allowed: tuple[type[GraphEdit], ...]
) -> tuple[Arrangement, Decision]:
    """Force producers to keep all of their neurons where a plan would edit the graph.

    1. Each edit names nodes; the producers upstream of these nodes keep all of their neurons.
    2. This is repeated until there are no edits, or until their producers already keep all neurons.

    Args:
        facts: facts about the model.
        arrangement: its layouts.
        lower: makes the plan of an arrangement.
        allowed: kinds of edits that do not count. Literal sizes in views have to count if the model's
            code contains them; a recorded graph contains them even where the code computes them.
            Slices do not if their ends may be attributes.

    Requires:
        All attributes of `facts`.

    Ensures:
        A plan whose edits, if it still has any, no producer can avoid.
    """
    nodes = {node.name: node for node in facts.graph.nodes}
    while True:
        decision = lower(arrangement)
        edits = [e for e in decision.plan.edits if not isinstance(e, allowed)]
        wider = _forced(facts, arrangement, edits, nodes)
        if len(wider) == 0:
            return arrangement, decision
        arrangement = layout(facts, {**arrangement.forced, **wider})


def _forced(
    facts: Facts, arrangement: Arrangement, edits: Iterable[GraphEdit], nodes: Mapping[str, fx.Node]
) -> dict[fx.Node, Tensor]:
    """Producers upstream of edits that do not keep all neurons yet -> indices of all of them."""
    named = {nodes[name] for edit in edits for name in edit.nodes}
    found = {producer for node in named for producer in producers(facts, node)}
    return {
        producer: torch.arange(arrangement.layouts[producer].width)
        for producer in found
        if len(arrangement.layouts[producer].order) < arrangement.layouts[producer].width
    }


def producers(facts: Facts, node: fx.Node) -> set[fx.Node]:
    """All producers whose neurons reach a node, itself included."""
    found: set[fx.Node] = set()
    pending, seen = [node], set[fx.Node]()
    while pending:
        current = pending.pop()
        operation = facts.operations.get(current)
        if current in seen:
            continue
        seen.add(current)
        if operation is not None and operation.produces:
            found.add(current)
        else:
            # Parts of a shape, and a chunking, whose parts are the operations, have no operands of
            # their own.
            operands = () if operation is None else operation.operands
            pending += operands or current.all_input_nodes
    return found

"""Pass 8: report the layers and operations that were left alone, with the reason."""

from __future__ import annotations

from torch import fx, nn

from snello.graph import Graph, at_place
from snello.neurons import is_norm, is_weighted
from snello.simplification.ops.attention import why_not
from snello.simplification.ops.attention_weights import attention_weights
from snello.simplification.ops.registry import is_plain

from .facts import Arrangement, Facts
from .faults import REASON


def left_alone(
    model: nn.Module, facts: Facts, arrangement: Arrangement, *, own_class: bool = False
) -> dict[str, str]:
    """Report layers that keep their neurons for want of an operation, and reads at full width.

    1. An outermost module with parameters that is not called in evaluation mode. It is removed,
       unless the result is of the model's own class (`own_class`).
    2. A layer, norm or attention without an operation.
    3. A node whose rule has failed, or a module whose own forward does not take narrower tensors.
    4. Another node without an operation, if one of its operands was narrowed.

    Requires:
        `operations` and `axes`; an arrangement of the same model.

    Ensures:
        Layer or node name -> reason, with file and line of the model's code where they are known.
    """
    graph = facts.graph
    fate = "left as it is" if own_class else "it goes"
    reasons = dict.fromkeys(unreached(model, graph), f"not reached in evaluation mode: {fate}")
    for node in graph.nodes:
        if node in facts.operations or node.op in ("placeholder", "output", "get_attr"):
            continue
        module = graph.layer(node)
        if facts.refused.get(node, "").startswith(REASON):  # one line for all of the module
            reasons.setdefault(graph.owner(node) or "the model", facts.refused[node])
            continue
        if node in facts.refused:
            name = node.name if module is None else str(node.target)
            reasons[name] = f"{facts.refused[node]}{at_place(node)}"
            continue
        if module is not None and (reason := _why(graph, node, module)) is not None:
            reasons[str(node.target)] = f"{reason}{at_place(node)}"
            continue
        narrowed = [a for a in node.all_input_nodes if a in arrangement.layouts]
        if any(not arrangement.layouts[a].is_natural for a in narrowed):
            target = node._pretty_print_target(node.target)
            name = node.name if module is None else str(node.target)
            kind = type(module).__name__ if module else target
            reasons[name] = f"no rule for {kind}: given at full width{at_place(node)}"
    return reasons


def unreached(model: nn.Module, graph: Graph) -> list[str]:
    """Outermost modules with parameters that evaluation mode does not call (auxiliary heads)."""
    reached = set(dict(graph.module.named_modules()))
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if (
            name
            and name not in reached
            and not inside
            and next(module.parameters(), None) is not None
        ):
            found.append(name)
    return found


def _why(graph: Graph, node: fx.Node, module: nn.Module) -> str | None:
    """Reason why a layer, norm or attention has no operation; None for another module."""
    if attention_weights(module) is not None:
        return why_not(graph, node, module) or "its input has its channels on another axis"
    if not (is_weighted(module) or is_norm(module) or not is_plain(module)):
        return None
    if graph.is_shared(str(node.target)):
        return "called more than once, or its parameters are tied"
    if not is_plain(module):
        return "its weight is not a plain parameter (a parametrisation, or a mask of torch.nn.utils.prune)"
    if is_norm(module):
        return "its channels are coupled: given at full width"
    return "its input has its channels on another axis"

"""Arguments and modes that a capture fixes: the lean model restores or refuses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from snello.graph import capture
from snello.simplification.ops.call import argument
from snello.simplification.ops.elementwise import DROPOUTS


def erase_arguments(graph: fx.Graph, constants: Mapping[str, Any]) -> None:
    """Remove fixed arguments from the signature, so that Python refuses other values.

    Args:
        graph: graph of the lean model.
        constants: placeholder -> value, with the stars of `*args` and `**kwargs` in the names.
    """
    for node in list(graph.nodes):
        if node.op == "placeholder" and str(node.target) in constants:
            graph.erase_node(node)


def wake_dropout(model: nn.Module, lean: fx.GraphModule, constants: Mapping[str, Any]) -> None:
    """Replace functional dropout by modules where its `training` argument is the model's mode.

    A graph that was captured in evaluation mode would never drop anything; a module follows the
    mode of the graph module. The calls are found by a second capture in training mode.

    Args:
        model: the original, in evaluation mode.
        lean: its captured graph, changed in place.
        constants: fixed arguments, as in the plan.
    """
    if not any(node.target in DROPOUTS for node in lean.graph.nodes):
        return
    try:
        traced = capture(model.train(), constants=constants).module
        in_training = {node.name: node for node in traced.graph.nodes}
    finally:
        model.eval()
    for node in list(lean.graph.nodes):
        twin = in_training.get(node.name)
        if node.target not in DROPOUTS or twin is None or twin.target is not node.target:
            continue
        if _is_training(twin) and not _is_training(node):
            name = f"snello_{node.name}"
            lean.add_submodule(name, DROPOUTS[node.target](argument(node, 1, "p", 0.5)))
            node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}


def _is_training(node: fx.Node) -> bool:
    return bool(argument(node, 2, "training", True))

"""Arguments of the forward that a captured path fixes: an optional one that was left out, a flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from snello.errors import ModelError

_PLAIN = (bool, int, float, str, type(None))


def checked_constants(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants of a capture if a plan can hold them as JSON.

    Raises:
        ModelError: for another kind of value, naming the argument.
    """
    for name, value in constants.items():
        if not isinstance(value, _PLAIN) and value not in ((), {}):
            raise ModelError(
                f"the forward's argument {name!r} has the value {value!r}, which decides the path through the "
                "model and cannot be written into a plan; use None, a number, a text or a boolean"
            )
    return dict(constants)


def erase_arguments(graph: fx.Graph, constants: Mapping[str, Any]) -> None:
    """Take the arguments that a graph fixes out of its signature: Python then refuses other values.

    Args:
        graph: of the lean model.
        constants: placeholder -> value, with the stars of ``*args`` and ``**kwargs`` in the names.
    """
    for node in list(graph.nodes):
        if node.op == "placeholder" and str(node.target) in constants:
            graph.erase_node(node)
